"""Places that fail for a moment cost a retry; what remains says where, why and what to do. On a folder and an S3 API."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bard_core.store import artifacts, hiccups, storage, workshop
from bard_core.store.artifacts import ArtifactError
from bard_core.store.hiccups import StorageError

CALLS: dict[str, Callable[[str], Any]] = {
    "exists": storage.exists,
    "read": lambda uri: storage.read_bytes(f"{uri}/file"),
    "write": lambda uri: storage.write_bytes(f"{uri}/file", b"written"),
    "create": lambda uri: storage.create_file(f"{uri}/new", b"created"),
    "sizes": storage.file_sizes,
    "folders": storage.list_folders,
    "hash": lambda uri: storage.sha256(f"{uri}/file"),
    "delete": lambda uri: storage.delete_file(f"{uri}/file"),
    "download": lambda uri: storage.download_tree(uri, storage.home() / "here"),
    "upload": lambda uri: storage.upload_tree(_tree(storage.home() / "tree"), uri),
}
PASSING = {
    "slow down": lambda: OSError(errno.EBUSY, "Please reduce your request rate"),
    "input/output error": lambda: OSError(errno.EIO, "Input/output error"),
    "stale handle": lambda: OSError(errno.ESTALE, "Stale file handle"),
    "reset": lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "time-out": lambda: TimeoutError("no answer in time"),
}


def _tree(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_bytes(b"up")
    return folder


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, bard_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(hiccups, "PAUSES_S", (0.0, 0.0, 0.0))
    place = str(tmp_path / "place") if request.param == "folder" else request.getfixturevalue("s3_root") + "/place"
    storage.write_bytes(f"{place}/file", b"old")
    storage.write_bytes(f"{place}/deep/file", b"old")
    return place


class Faulty:
    """Every call of storage first fails ``times`` times, with an error of the given kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], times: int) -> None:
        self.error, self.left, self.raised = error, times, 0
        opened, written = fsspec.core.url_to_fs, os.replace
        monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *a, **k: self.fail() or opened(*a, **k))
        monkeypatch.setattr(os, "replace", lambda *a, **k: self.fail() or written(*a, **k))

    def fail(self) -> None:
        if self.left:
            self.left -= 1
            self.raised += 1
            raise self.error()


@pytest.mark.parametrize("call", sorted(CALLS))
@pytest.mark.parametrize("kind", ["slow down", *(pytest.param(k, marks=pytest.mark.faults) for k in PASSING if k != "slow down")])
def test_a_hiccup_costs_a_retry(uri: str, call: str, kind: str, monkeypatch: pytest.MonkeyPatch, faults: Any) -> None:
    expected = CALLS[call](uri)
    if call in ("create", "delete"):
        storage.delete_file(f"{uri}/new")
        storage.write_bytes(f"{uri}/file", b"old")
    with monkeypatch.context() as patch:
        place = Faulty(patch, PASSING[kind], times=3)
        assert CALLS[call](uri) == expected and place.raised == 3
    faults.survived(f"storage: {kind}", "the call was made again", times=3)


@pytest.mark.parametrize("call", sorted(CALLS))
def test_what_does_not_pass_says_where_why_and_what_to_do(
    uri: str, call: str, monkeypatch: pytest.MonkeyPatch, faults: Any
) -> None:
    for error, words in (
        (PermissionError("The provided token has expired."), "have expired .* renew them"),
        (PermissionError(errno.EACCES, "Permission denied"), "access is refused .* check"),
        (OSError(errno.ENOSPC, "No space left on device"), "no room in .*bytes are free.*make room"),
        (ConnectionError("no route to host"), "failed 4 times .no route to host.*run the same command again"),
    ):
        with monkeypatch.context() as patch:
            place = Faulty(patch, lambda error=error: error, times=100)  # type: ignore[misc]
            with pytest.raises(StorageError, match=words) as told:
                CALLS[call](uri)
            assert place.raised == (4 if "4 times" in words else 1) and str(told.value).startswith((uri, str(storage.home())))
        storage.write_bytes(f"{uri}/file", b"old")
        CALLS[call](uri)  # with the cause gone, the same call again
        faults.survived(f"storage: {type(error).__name__} for good", "refused in one line", times=1)


def test_a_bug_is_not_taken_for_a_hiccup(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        place = Faulty(patch, lambda: TypeError("a bug"), times=100)
        with pytest.raises(TypeError):
            storage.exists(uri)
        assert place.raised == 1


def test_real_credentials_that_are_missing_say_so(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import NoCredentialsError

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise NoCredentialsError()

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(StorageError, match=r"no credentials .*set AWS_ACCESS_KEY_ID"):
        storage.read_bytes(f"{s3_root}/x")


def test_a_server_that_is_gone_is_named_in_seconds(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hiccups, "PAUSES_S", ())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"failed 1 times .*AWS_ENDPOINT_URL"):
        storage.read_bytes(f"{s3_root}/x")
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("victim", ["weights", "manifest.json"])
def test_a_byte_flipped_on_the_way_is_fetched_again(
    s3_root: str, victim: str, bard_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Any
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "weights").write_bytes(b"w" * 1000)
    uri = f"{s3_root}/model"
    wanted = artifacts.commit_directory(tmp_path / "s", uri, kind="model").digest
    filesystem = storage._filesystem(uri)[0]
    left = [1]

    def flip(name: str, data: bytes) -> bytes:
        if not name.endswith(victim) or not left[0]:
            return data
        left[0] -= 1
        place = data.index(b"sha256") + 12 if victim == "manifest.json" else 500
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    get, cat = filesystem.get_file, filesystem.cat_file

    def flipped_get(path: str, target: str, **kwargs: Any) -> None:
        get(path, target, **kwargs)
        Path(target).write_bytes(flip(path, Path(target).read_bytes()))

    monkeypatch.setattr(filesystem, "get_file", flipped_get)
    monkeypatch.setattr(filesystem, "cat_file", lambda path, **k: flip(path, cat(path, **k)))
    folder = artifacts.fetch(uri, wanted)
    assert (folder / "weights").read_bytes() == b"w" * 1000 and left == [0]
    faults.survived("storage: a byte flipped on the way", "fetched again", times=1)
    shutil.rmtree(folder)
    left[0] = 100
    with pytest.raises(ArtifactError):
        artifacts.fetch(uri, wanted)
    assert not json.loads(json.dumps(sorted(p.name for p in (bard_home / "cache").iterdir()))), "nothing damaged is kept"


def test_a_dead_makers_scratch_folder_is_swept_and_a_living_ones_is_not(
    bard_home: Path, monkeypatch: pytest.MonkeyPatch, faults: Any
) -> None:
    monkeypatch.setattr(workshop, "OLD_S", 0.0)
    dead = storage.home() / "staging" / "model-dead"
    dead.mkdir(parents=True)
    (dead / "weights").write_bytes(b"half")
    run = storage.home() / "staging" / "0123456789abcdef"  # of a run under an s3:// prefix, which sweeps for itself
    run.mkdir()
    with workshop.scratch("model") as mine:
        assert workshop.sweep_scratch() == ["model-dead"]
        assert mine.is_dir() and run.is_dir() and not dead.exists()
    faults.survived("staging folder of a dead process", "swept", times=1)
