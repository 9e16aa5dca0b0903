"""Artifacts cannot lie: torn, changed and missing files are found, commits are idempotent and atomic."""

import json
import math
from pathlib import Path

import pytest

from bard_core import artifacts, storage
from bard_core.config import DataConfig, LabWorldConfig


def staged(folder: Path, text: str = "hello") -> Path:
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "b.bin").write_bytes(bytes(range(256)))
    return folder


@pytest.fixture
def artifact(tmp_path, bard_home):
    manifest = artifacts.commit_directory(staged(tmp_path / "s"), str(tmp_path / "out"), kind="model", step=3)
    return tmp_path / "out", manifest


def test_commit_and_verify(artifact):
    folder, manifest = artifact
    assert [entry.path for entry in manifest.files] == ["a.txt", "sub/b.bin"]
    assert artifacts.verify(str(folder)).digest == manifest.digest
    assert artifacts.fetch(str(folder), manifest.digest) == folder


def test_same_content_same_digest_and_kept(artifact, tmp_path):
    folder, manifest = artifact
    before = (folder / "a.txt").stat().st_mtime_ns
    again = artifacts.commit_directory(staged(tmp_path / "s2"), str(folder), kind="model", step=3)
    assert again.digest == manifest.digest
    assert (folder / "a.txt").stat().st_mtime_ns == before


def test_other_content_replaces(artifact, tmp_path):
    folder, manifest = artifact
    again = artifacts.commit_directory(staged(tmp_path / "s2", "other"), str(folder), kind="model", step=3)
    assert again.digest != manifest.digest
    assert artifacts.verify(str(folder)).digest == again.digest
    with pytest.raises(artifacts.ArtifactError, match="replaced"):
        artifacts.fetch(str(folder), manifest.digest)


def flip(path):
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda f: (f / "a.txt").write_text("hel"), "cut"),
        (lambda f: flip(f / "sub" / "b.bin"), "changed"),
        (lambda f: (f / "sub" / "b.bin").unlink(), "missing"),
        (lambda f: (f / "manifest.json").unlink(), "never committed"),
        (lambda f: (f / "manifest.json").write_text("{"), "not a manifest"),
    ],
)
def test_harm_is_found(artifact, harm, word):
    folder, _ = artifact
    harm(folder)
    with pytest.raises(artifacts.ArtifactError, match=word):
        artifacts.verify(str(folder))


def test_empty_staging_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(artifacts.ArtifactError, match="no files"):
        artifacts.commit_directory(tmp_path / "empty", str(tmp_path / "out"), kind="model")


def test_digest_is_stable_and_strict():
    config = DataConfig(lab=LabWorldConfig())
    assert artifacts.digest(config) == artifacts.digest(DataConfig(lab=LabWorldConfig()))
    assert artifacts.digest({"b": 1, "a": 2.5}) == artifacts.digest({"a": 2.5, "b": 1})
    for bad in (math.nan, Path("x"), {1: 2}, {"x": {3}}):
        with pytest.raises(TypeError, match=r"\$"):
            artifacts.digest(bad)


def test_local_write_is_whole_or_nothing(tmp_path):
    target = tmp_path / "deep" / "file"
    storage.write_bytes(str(target), b"one")
    storage.write_bytes(str(target), b"two")
    assert target.read_bytes() == b"two"
    assert [p.name for p in target.parent.iterdir()] == ["file"]


@pytest.fixture(scope="module")
def s3():
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_artifact_on_s3(s3, tmp_path, bard_home, monkeypatch):
    import boto3

    for name, value in {"AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="lab")
    uri = "s3://lab/models/one"
    manifest = artifacts.commit_directory(staged(tmp_path / "s"), uri, kind="model")
    assert storage.list_files(uri) == ["a.txt", "manifest.json", "sub/b.bin"]
    folder = artifacts.fetch(uri, manifest.digest)
    assert (folder / "a.txt").read_text() == "hello"
    client.put_object(Bucket="lab", Key="models/two/manifest.json", Body=json.dumps(manifest.model_dump(mode="json")).encode())
    with pytest.raises(artifacts.ArtifactError, match="missing"):
        artifacts.verify("s3://lab/models/two")
    client.put_object(Bucket="lab", Key="models/one/a.txt", Body=b"hellO")  # same size, other bytes
    artifacts.verify(uri)  # sizes cannot tell
    import shutil

    shutil.rmtree(bard_home / "cache")
    with pytest.raises(artifacts.ArtifactError, match="changed"):
        artifacts.fetch(uri, manifest.digest)
