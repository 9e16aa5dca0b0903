"""kill -9 of prepare: finished units stay, and the dataset is the one of an undisturbed run, whenever it was killed."""

import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bard_core.config.sections.data import DataConfig
from bard_core.config.sources import RawSource
from bard_core.data.prepare import prepare
from bard_core.store import artifacts, storage, workshop

PREPARE = """
import sys
from bard_core.config.sections.data import DataConfig
from bard_core.data.prepare import prepare
if __name__ == "__main__":
    prepare(DataConfig.model_validate_json(sys.argv[1]), sys.argv[2], processes=int(sys.argv[3]))
"""


@pytest.fixture
def config(tmp_path: Path, bard_home: Path) -> DataConfig:
    """Twelve shards of thirty rows."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for shard in range(12):
        rows = []
        for number in range(30):
            buffer = io.BytesIO()
            Image.new("RGB", (64, 32), ((30 * shard + number) % 256, 0, 0)).save(buffer, format="PNG")
            texts = [{"user": f"Question {shard}-{number}", "assistant": "Answer"}]
            rows.append({"images": [{"bytes": buffer.getvalue(), "path": "x"}], "texts": texts})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:02d}.parquet")
    return DataConfig(sources=(RawSource(name="raw", schema_name="finevision", uri=str(folder)),))


def units_of(folder: Path) -> dict[Path, int]:
    """The finished units, and when each was finished."""
    return {path: path.stat().st_mtime_ns for path in (folder / "units").glob("*/manifest.json")}


def killed_between_units(config: DataConfig, folder: Path, delays: list[float], processes: int) -> None:
    """Kill a prepare, with all its processes, at each delay after its next unit; then let one finish and compare."""
    expected = prepare(config, str(folder / "whole" / "out"), processes=1)
    (folder / "run.py").write_text(PREPARE)
    command = [sys.executable, str(folder / "run.py"), config.model_dump_json(), str(folder / "out"), str(processes)]
    before: dict[Path, int] = {}
    for delay in delays:
        process = subprocess.Popen(command, env=dict(os.environ), start_new_session=True, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 400
        while len(units_of(folder)) <= len(before) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = units_of(folder)
        assert before.items() <= now.items()  # what was finished is not made again
        before = now
    assert prepare(config, str(folder / "out"), processes=processes).manifest_sha256 == expected.manifest_sha256
    assert before and before.items() <= units_of(folder).items()


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_ends_the_same(config: DataConfig, tmp_path: Path) -> None:
    killed_between_units(config, tmp_path, [0.02], processes=1)


@pytest.mark.faults
def test_a_pool_killed_at_many_moments_ends_the_same(config: DataConfig, tmp_path: Path, faults: Any) -> None:
    killed_between_units(config, tmp_path, [0.01 * number for number in range(5)], processes=2)
    faults.survived("kill -9 of prepare and its pool", "finished units stay, the undisturbed run's dataset", times=5)


@pytest.mark.faults
@pytest.mark.parametrize("part", ["units", "merge"])
def test_killed_at_random_moments_it_ends_the_same(
    part: str, config: DataConfig, tmp_path: Path, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty forks of this process, each killed somewhere in what a run takes."""
    monkeypatch.setattr(workshop, "OLD_S", 0.0)
    chance, out = random.Random(part), str(tmp_path / "out")
    expected = prepare(config, str(tmp_path / "whole" / "out"), processes=1)
    if part == "merge":
        prepare(config, out, processes=1)
    started = time.monotonic()
    prepare(config, out if part == "merge" else str(tmp_path / "timed" / "out"), processes=1)
    whole_s = time.monotonic() - started
    context = multiprocessing.get_context("fork")
    for _ in range(20):
        before = units_of(tmp_path)
        process = context.Process(target=prepare, args=(config, out), kwargs={"processes": 1})
        process.start()
        time.sleep(chance.uniform(0.0, whole_s))
        process.kill()
        process.join()
        assert before.items() <= units_of(tmp_path).items()
        if (tmp_path / "out" / artifacts.MANIFEST).is_file():  # it had finished, or a whole one was replaced or not at all
            assert artifacts.verify(out).digest == expected.manifest_sha256
            storage.delete_tree(out)
    assert prepare(config, out, processes=1).manifest_sha256 == expected.manifest_sha256
    assert not any((storage.home() / "staging").iterdir())
    faults.survived(f"kill -9 of prepare, {part}", "finished units stay, the undisturbed run's dataset", times=20)
