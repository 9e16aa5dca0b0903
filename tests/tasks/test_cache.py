"""Flyte's local cache, as tasks use it: keyed by the version, believed where the artifact stands, renewed when damaged."""

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest
from flytekit.core import local_cache
from flytekit.models.literals import Binary, Literal, LiteralMap, Scalar

from tasks import cache

SCRIPT = """
import os, sys
from pathlib import Path
from bard_core.config.versions import VERSIONS
VERSIONS["pbm"] += int(sys.argv[2])
from flytekit import task, workflow
from bard_core.store import artifacts, storage, workshop
from bard_core.store.places import artifact_uri
from bard_core.store.refs import ModelRef
from tasks.settings import Model, stage_task
from bard_core.config.sections.storage import StorageConfig


@stage_task("train", "control", code="pbm")
def make(text: str, parent_run: str) -> Model:
    uri = artifact_uri(StorageConfig(), "models", "m", "pbm", text)
    if artifacts.standing(uri) is None:
        with workshop.scratch("m") as scratch:
            (scratch / "m").mkdir()
            (scratch / "m" / "weights").write_text(text)
            artifacts.commit_directory(scratch / "m", uri, kind="model")
        print("made", flush=True)
    print("ran", flush=True)
    return ModelRef(uri=uri, manifest_sha256=artifacts.read_manifest(uri).digest, stage="pbm", block_size=4, parent_sha256=None)


@stage_task("train", "control")
def read(model: Model) -> str:
    return (artifacts.fetch(model) / "weights").read_text()


@workflow
def both(text: str, parent_run: str) -> str:
    return read(model=make(text=text, parent_run=parent_run))


print("said", both(text=sys.argv[1], parent_run=sys.argv[3]))
"""


class Flow:
    """Runs the workflow above in processes of its own, with Flyte's local cache, in one home."""

    def __init__(self, folder: Path) -> None:
        self.home, self.script = folder / "home", folder / "flow.py"
        self.script.write_text(SCRIPT)

    def __call__(self, text: str = "word", newer: int = 0, run: str = "r", expect: int = 0) -> tuple[list[str], str]:
        """(what it printed, its log)."""
        import os

        environment = {**os.environ, "BARD_HOME": str(self.home), "FLYTE_LOCAL_CACHE_ENABLED": "true"}
        command = [sys.executable, str(self.script), text, str(newer), run]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == expect, done.stderr[-3000:]
        return [line for line in done.stdout.splitlines() if line.split()[0] in ("made", "ran", "said")], done.stderr

    @property
    def model(self) -> Path:
        (folder,) = [path for path in (self.home / "artifacts" / "models").iterdir() if ".damaged" not in path.name]
        return folder


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    flow = Flow(tmp_path_factory.mktemp("flow"))
    assert flow()[0] == ["made", "ran", "said word"]
    return flow


def test_the_same_is_taken_from_the_cache_and_a_raised_version_is_not(flow: Flow) -> None:
    assert flow(run="another")[0] == ["said word"], "for whom it is made is no part of the key"
    assert flow(newer=1)[0] == ["made", "ran", "said word"]
    assert flow(newer=1)[0] == ["said word"] == flow()[0]


def test_an_artifact_that_is_gone_or_cut_is_made_again_in_the_same_run(tmp_path: Path) -> None:
    flow = Flow(tmp_path)
    flow()
    flow.model.rename(tmp_path / "taken")
    printed, log = flow()
    assert printed == ["made", "ran", "said word"] and "not taken from Flyte's cache, because" in log
    (flow.model / "weights").write_text("w")
    printed, log = flow()
    assert printed == ["made", "ran", "said word"] and "has 1 bytes, not 4" in log and "set aside as" in log


def test_a_flipped_bit_is_told_and_the_same_command_repairs_it(tmp_path: Path) -> None:
    flow = Flow(tmp_path)
    flow()
    place = flow.model
    (place / "weights").write_text("wore")
    _, log = flow(expect=1)
    words = f"{place}: weights does not have its recorded sha256: it was changed"
    assert f"{words}; it was set aside as {place}.damaged" in log and "run the same command again" in log
    assert flow()[0] == ["made", "ran", "said word"] and flow()[0] == ["said word"]


def test_a_file_added_to_an_artifact_is_removed_or_it_is_made_again(tmp_path: Path) -> None:
    flow = Flow(tmp_path)
    flow()
    (flow.model / "note.txt").write_text("mine")
    printed, log = flow()
    assert printed == ["made", "ran", "said word"] and "it was added later" in log
    assert (flow.model.with_name(f"{flow.model.name}.damaged") / "note.txt").read_text() == "mine", "nobody's file is lost"


def test_a_damaged_cache_is_set_aside_and_artifacts_are_used(tmp_path: Path) -> None:
    flow = Flow(tmp_path)
    flow()
    database = flow.home / "flyte" / "cache" / "cache.db"
    database.write_bytes(b"\x7f" * database.stat().st_size)
    printed, log = flow()
    assert printed == ["ran", "said word"], "it ran, and had nothing to make"
    assert "flyte/cache.damaged. Flyte's local cache begins anew" in log
    assert flow()[0] == ["said word"]


def test_no_flipped_bit_of_an_entry_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, faults: Any
) -> None:
    monkeypatch.setattr(local_cache, "CACHE_LOCATION", str(tmp_path))
    monkeypatch.setattr(local_cache.LocalTaskCache, "_initialized", False)
    monkeypatch.setattr(local_cache.LocalTaskCache, "_cache", None, raising=False)
    packed = msgpack.packb({"accuracy": 0.875, "tokens_per_s": 812.25, "name": "pbm-b8"})
    value = LiteralMap({"o0": Literal(scalar=Scalar(binary=Binary(value=packed, tag="msgpack")))})
    key = ("evaluate", "1", LiteralMap({}), ())
    cache.kept(*key, value)
    assert cache.believed(*key) == value
    with sqlite3.connect(tmp_path / "cache.db") as connection:
        (body,) = connection.execute("SELECT value FROM Cache WHERE typeof(value) = 'blob'").fetchone()
        connection.execute("PRAGMA synchronous = OFF")
        for bit in range(0, 8 * len(body), 5):
            damaged = bytearray(body)
            damaged[bit // 8] ^= 1 << bit % 8
            connection.execute("UPDATE Cache SET value = ? WHERE typeof(value) = 'blob'", (bytes(damaged),))
            connection.commit()
            assert cache.believed(*key) in (None, value), "another answer than was kept"
    connection.close()
    assert "its entry in Flyte's cache is damaged" in caplog.text
    faults.survived(
        "a bit flipped in an entry of Flyte's cache", "not believed, told, the task runs again", times=8 * len(body) // 5
    )
