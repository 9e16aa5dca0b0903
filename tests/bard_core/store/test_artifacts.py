"""Artifacts that cannot lie: real faults on real files, on a folder and on an S3 API."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bard_core.config.sections.noise import NoiseConfig
from bard_core.store import artifacts, storage
from bard_core.store.artifacts import ArtifactError, FileEntry
from bard_core.store.refs import DatasetRef, ModelRef


def staged(folder: Path, **files: str) -> Path:
    (folder / "deep").mkdir(parents=True)
    for name, text in (files or {"a": "alpha", "b": "beta" * 1000}).items():
        (folder / "deep" / name).write_text(text)
    return folder


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, bard_home: Path) -> str:
    root = str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_root")
    return storage.join(root, "model", "x")


def test_commit_then_fetch(uri: str, tmp_path: Path) -> None:
    manifest = artifacts.commit_directory(
        staged(tmp_path / "s"), uri, kind="model", step=3, config_digest="c", parent_digest="p", metadata={"n": 1, "share": 0.5}
    )
    assert [entry.path for entry in manifest.files] == ["deep/a", "deep/b"]
    assert artifacts.verify(uri) == artifacts.read_manifest(uri) == manifest
    folder = artifacts.fetch(uri, manifest.digest)
    assert (folder / "deep" / "a").read_text() == "alpha"
    ref = DatasetRef(uri=uri, manifest_sha256=manifest.digest, num_train=1, num_eval=1, epoch_samples=1)
    assert artifacts.fetch(ref) == folder and ref.key == manifest.digest
    with pytest.raises(ArtifactError, match="it was replaced since"):
        artifacts.fetch(uri, "0" * 64)


def test_committing_the_same_again_changes_nothing(uri: str, tmp_path: Path) -> None:
    first = artifacts.commit_directory(staged(tmp_path / "s"), uri, kind="model")
    assert artifacts.commit_directory(staged(tmp_path / "t"), uri, kind="model").digest == first.digest
    storage.write_bytes(storage.join(uri, "deep", "a"), b"alphb")
    artifacts.commit_directory(staged(tmp_path / "u"), uri, kind="model")
    assert artifacts.verify(uri).digest == first.digest  # damage at the place was repaired, not believed


def test_a_replacement_leaves_no_old_files(uri: str, tmp_path: Path) -> None:
    artifacts.commit_directory(staged(tmp_path / "s", old="1", both="1"), uri, kind="model")
    new = artifacts.commit_directory(staged(tmp_path / "t", both="2"), uri, kind="model")
    assert storage.list_files(uri) == ["deep/both", "manifest.json"]
    assert artifacts.verify(uri) == new


FAULTS: dict[str, tuple[Callable[[str], None], str]] = {
    "cut": (lambda uri: storage.write_bytes(f"{uri}/deep/b", b"beta"), "deep/b has 4 bytes, not 4000"),
    "flipped": (lambda uri: storage.write_bytes(f"{uri}/deep/a", b"blpha"), "deep/a does not have its recorded sha256"),
    "lost": (lambda uri: storage.delete_file(f"{uri}/deep/a"), "deep/a is missing"),
    "added": (lambda uri: storage.write_bytes(f"{uri}/evil.bin", b"x"), "evil.bin is not in the manifest"),
    "no manifest": (lambda uri: storage.delete_file(f"{uri}/manifest.json"), "has no manifest.json"),
    "torn manifest": (lambda uri: storage.write_bytes(f"{uri}/manifest.json", b'{"kind": "mod'), "is not a manifest"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str, uri: str, tmp_path: Path) -> None:
    artifacts.commit_directory(staged(tmp_path / "s"), uri, kind="model")
    damage, message = FAULTS[fault]
    damage(uri)
    for check in (artifacts.verify, artifacts.fetch):
        with pytest.raises(ArtifactError, match=message):
            check(uri)
    if fault == "added":  # "remove it"
        storage.delete_file(f"{uri}/evil.bin")
        artifacts.fetch(uri)


def test_sizes_alone_when_hashes_are_not_wanted(tmp_path: Path) -> None:
    uri = str(tmp_path / "x")
    artifacts.commit_directory(staged(tmp_path / "s"), uri, kind="model")
    FAULTS["flipped"][0](uri)
    artifacts.verify(uri, hashes=False)


def test_a_torn_upload_is_no_artifact(s3_root: str, tmp_path: Path, bard_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = storage.join(s3_root, "x")
    artifacts.commit_directory(staged(tmp_path / "s"), uri, kind="model")

    def dies(folder: Path, uri: str) -> None:
        storage.write_bytes(storage.join(uri, "deep", "a"), b"new")
        raise ConnectionError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "upload_tree", dies)
        with pytest.raises(ConnectionError):
            artifacts.commit_directory(staged(tmp_path / "t", a="new"), uri, kind="model")
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        artifacts.fetch(uri)
    assert (tmp_path / "t" / "deep" / "a").exists()
    artifacts.commit_directory(tmp_path / "t", uri, kind="model")
    assert (artifacts.fetch(uri) / "deep" / "a").read_text() == "new"


def test_a_damaged_cached_download_is_fetched_again(s3_root: str, tmp_path: Path, bard_home: Path) -> None:
    uri = storage.join(s3_root, "x")
    artifacts.commit_directory(staged(tmp_path / "s"), uri, kind="model")
    folder = artifacts.fetch(uri)
    (folder / "deep" / "a").write_text("blpha")
    assert artifacts.fetch(uri) == folder and (folder / "deep" / "a").read_text() == "alpha"
    assert os.listdir(bard_home / "cache") == [folder.name]


def test_a_failed_commit_keeps_staging_and_the_old_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "x")
    old = artifacts.commit_directory(staged(tmp_path / "s"), uri, kind="model")

    def full(uri: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            artifacts.commit_directory(staged(tmp_path / "t", a="new"), uri, kind="model")
    assert artifacts.verify(uri) == old
    artifacts.commit_directory(tmp_path / "t", uri, kind="model")
    assert sorted(os.listdir(tmp_path)) == ["x"]


COMMIT = """
import sys
from pathlib import Path
from bard_core.store import artifacts
for folder in sys.argv[2:]:
    print(artifacts.commit_directory(Path(folder), sys.argv[1], kind="model").digest)
"""


def test_processes_committing_at_once_agree(tmp_path: Path) -> None:
    """Of their own, not forks: a fork inherits the locks that other tests' threads hold."""
    uri = str(tmp_path / "x")
    folders = [[str(staged(tmp_path / f"s{i}-{k}")) for k in range(4)] for i in range(4)]
    writers = [
        subprocess.Popen([sys.executable, "-c", COMMIT, uri, *mine], stdout=subprocess.PIPE, text=True) for mine in folders
    ]
    digests = {digest for writer in writers for digest in writer.communicate(timeout=120)[0].split()}
    assert {writer.returncode for writer in writers} == {0}
    assert digests == {artifacts.verify(uri).digest} and os.listdir(tmp_path) == ["x"]


def test_nothing_to_commit(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(ArtifactError, match="holds no files"):
        artifacts.commit_directory(tmp_path / "s", str(tmp_path / "x"), kind="model")
    (tmp_path / "s" / "link").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match="symbolic link"):
        artifacts.commit_directory(tmp_path / "s", str(tmp_path / "x"), kind="model")


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", "a\\b"])
def test_a_manifest_cannot_point_outside(path: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        FileEntry(path=path, size=1, sha256="0")


def test_digest_is_canonical_and_refuses_the_rest() -> None:
    assert artifacts.digest({"b": [1, 2], "a": None}) == artifacts.digest({"a": None, "b": (1, 2)})
    assert artifacts.digest(NoiseConfig()) != artifacts.digest(NoiseConfig(min_t=0.1))
    assert artifacts.digest([1]) != artifacts.digest([True]) != artifacts.digest(["1"])
    for value, where in (({"a": [1, math.nan]}, r"\$\.a\[1\]"), ([Path("x")], r"\$\[0\]"), ({1: 2}, r"\$: key 1"), ({1}, r"\$")):
        with pytest.raises(TypeError, match=where):
            artifacts.digest(value)


def test_a_manifest_on_disk_has_its_digest(tmp_path: Path) -> None:
    uri = str(tmp_path / "x")
    manifest = artifacts.commit_directory(staged(tmp_path / "s"), uri, kind="model", metadata={"pair": (1, 2), "rate": 1e-05})
    assert artifacts.read_manifest(uri).digest == manifest.digest
    assert json.loads((tmp_path / "x" / "manifest.json").read_text())["metadata"] == {"pair": [1, 2], "rate": 1e-05}
    with pytest.raises(TypeError, match=r"\$\.metadata\.bad"):
        artifacts.commit_directory(staged(tmp_path / "t"), str(tmp_path / "y"), kind="model", metadata={"bad": math.inf})
    assert not (tmp_path / "y").exists()


def test_model_refs_have_names() -> None:
    make = {"uri": "x", "manifest_sha256": "0", "parent_sha256": None}
    assert ModelRef(stage="source", block_size=1, **make).name == "source"
    assert ModelRef(stage="swd", block_size=32, **make).name == "swd-b32"


def test_a_part_alone_is_brought_and_verified(uri: str, tmp_path: Path, bard_home: Path) -> None:
    folder = staged(tmp_path / "s")
    (folder / "beside").write_text("x")
    manifest = artifacts.commit_directory(folder, uri, kind="model")
    storage.write_bytes(f"{uri}/beside", b"damaged, and none of our business")
    folder = artifacts.fetch(uri, manifest.digest, part="deep/")
    assert (folder / "deep" / "a").read_text() == "alpha"
    assert storage.is_local(uri) or not (folder / "beside").exists()
    with pytest.raises(ArtifactError, match="has no shallow/: it holds beside, deep"):
        artifacts.fetch(uri, part="shallow/")
    with pytest.raises(ArtifactError, match="beside has 33 bytes, not 1"):
        artifacts.fetch(uri, manifest.digest)


def test_a_damaged_part_is_refused(uri: str, tmp_path: Path, bard_home: Path) -> None:
    manifest = artifacts.commit_directory(staged(tmp_path / "s"), uri, kind="model")
    FAULTS["flipped"][0](uri)
    with pytest.raises(ArtifactError, match="deep/a does not have its recorded sha256"):
        artifacts.fetch(uri, manifest.digest, part="deep/")


def test_what_is_damaged_on_s3_is_set_aside_and_what_was_damaged_on_the_way_is_not(
    s3_root: str, bard_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def commit(uri: str) -> None:
        (tmp_path / "staging").mkdir(exist_ok=True)
        (tmp_path / "staging" / "weights").write_bytes(b"word")
        artifacts.commit_directory(tmp_path / "staging", uri, kind="model")

    bring, flips = storage.download_tree, [b"wore"]

    def on_the_way(uri: str, folder: Path, *wanted: object) -> None:
        bring(uri, folder, *wanted)
        if flips:
            (folder / "weights").write_bytes(flips.pop())

    monkeypatch.setattr(storage, "download_tree", on_the_way)
    uri = storage.join(s3_root, "model")
    commit(uri)
    assert (artifacts.fetch(uri) / "weights").read_bytes() == b"word" and not flips

    storage.write_bytes(storage.join(uri, "weights"), b"wore")
    shutil.rmtree(bard_home / "cache")
    with pytest.raises(artifacts.DamagedError, match="run the same command again"):
        artifacts.fetch(uri)
    assert storage.list_files(uri) == [] and f"set aside as {uri}.damaged" in caplog.text
    assert storage.read_bytes(storage.join(f"{uri}.damaged", "weights")) == b"wore"
    commit(uri)
    assert (artifacts.fetch(uri) / "weights").read_bytes() == b"word"
