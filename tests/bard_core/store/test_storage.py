"""Storage on a folder and on an S3 API: whole writes, listings, trees, and folders that change places."""

import hashlib
import os
from pathlib import Path

import pytest

from bard_core.config.sections.storage import StorageConfig
from bard_core.store import storage, workshop


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "place") if request.param == "folder" else request.getfixturevalue("s3_root")


def test_bytes_trees_and_listings(place: str, tmp_path: Path) -> None:
    uri = storage.join(place, "a", "b.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.exists(uri) and storage.read_bytes(uri) == b"two"
    assert storage.sha256(uri) == hashlib.sha256(b"two").hexdigest()

    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "top.txt").write_text("1")
    (tree / "deep" / "file").write_bytes(b"\0" * 100)
    storage.upload_tree(tree, storage.join(place, "tree"))
    assert storage.list_files(storage.join(place, "tree")) == ["deep/file", "top.txt"]
    assert storage.file_sizes(place)["tree/deep/file"] == 100
    storage.download_tree(storage.join(place, "tree"), tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "file").read_bytes() == b"\0" * 100

    storage.delete_file(uri)
    storage.delete_file(uri)
    assert not storage.exists(uri) and storage.list_files(storage.join(place, "nothing")) == []
    with pytest.raises(storage.StorageError, match="nothing there"):
        storage.read_bytes(uri)
    with pytest.raises(storage.StorageError, match="nothing there"):
        storage.download_tree(storage.join(place, "nothing"), tmp_path / "none")


def test_a_failed_write_keeps_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(storage.StorageError, match=rf"no room in {tmp_path}: [\d,]+ bytes are free, 3 are needed.*No space left"):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_failed_replacement_puts_both_folders_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging, target = tmp_path / "staging", tmp_path / "target"
    for folder, text in ((staging, "new"), (target, "old")):
        folder.mkdir()
        (folder / "file").write_text(text)
    rename = os.rename

    def fails_into_target(source: Path, destination: Path) -> None:
        if Path(destination) == target and ".old." not in str(source):
            raise PermissionError(13, "Permission denied")
        rename(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails_into_target)
        with pytest.raises(PermissionError):
            workshop.replace_folder(staging, target)
    assert (target / "file").read_text() == "old" and (staging / "file").read_text() == "new"
    workshop.replace_folder(staging, target)
    assert (target / "file").read_text() == "new" and os.listdir(tmp_path) == ["target"]


def test_writers_and_readers_agree_on_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    storage.write_bytes("~/place/file", b"here")
    assert storage.read_bytes("~/place/file") == b"here" and (tmp_path / "place" / "file").is_file()


def test_a_name_that_leads_out_of_an_s3_folder_is_told_and_once_removed_the_rest_reads(s3_root: str) -> None:
    storage.write_bytes(f"{s3_root}/place/kept", b"kept")
    filesystem, path = storage._filesystem(f"{s3_root}/place")
    filesystem.pipe_file(f"{path}/../outside", b"outside")
    with pytest.raises(storage.StorageError, match=r"'\.\./outside' leads out of the folder; remove that file"):
        storage.list_files(f"{s3_root}/place")
    filesystem.rm_file(f"{path}/../outside")
    assert storage.list_files(f"{s3_root}/place") == ["kept"]


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARD_HOME", str(tmp_path / "home"))
    assert storage.home() == tmp_path / "home" and storage.home().is_dir()
    assert storage.root_uri(StorageConfig()) == str(tmp_path / "home")
    assert storage.root_uri(StorageConfig(root_uri="s3://bucket/x/")) == "s3://bucket/x"
    assert storage.local_path("file:///a/b") == Path("/a/b")
    with pytest.raises(storage.StorageError, match="remote"):
        storage.local_path("s3://bucket/x")
    with pytest.raises(storage.StorageError, match="nosuch"):
        storage.exists("nosuch://x")


def test_scratch_folders_are_apart_and_gone_afterwards(bard_home):
    with workshop.scratch("model") as mine, workshop.scratch("model") as theirs:
        assert mine != theirs and mine.is_dir() and mine.is_relative_to(storage.home())
        (mine / "file").write_text("x")
    assert not mine.exists() and not theirs.exists()
