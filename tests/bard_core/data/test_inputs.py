"""Changed data at an old path is another key; the same data elsewhere, or looked at again, is the same."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import s3fs

from bard_core.config.sections.data import DataConfig
from bard_core.config.sources import RawSource
from bard_core.data import inputs
from bard_core.data.inputs import InputError, contents, found_model, pinned, raw_inputs


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "a.parquet").write_bytes(b"one")
    (folder / "sub").mkdir()
    (folder / "sub" / "b.parquet").write_bytes(b"two")
    return folder


CHANGES = {
    "a byte": lambda folder: (folder / "a.parquet").write_bytes(b"onE"),
    "a name": lambda folder: (folder / "a.parquet").rename(folder / "c.parquet"),
    "one more": lambda folder: (folder / "c.parquet").write_bytes(b""),
    "one less": lambda folder: (folder / "sub" / "b.parquet").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_another_key(change: str, bard_home: Path, tmp_path: Path) -> None:
    folder = fill(tmp_path / "raw")
    before = contents(str(folder))
    assert contents(str(folder)) == before == contents(str(fill(tmp_path / "copy")))
    stamp = os.stat(folder / "a.parquet")
    CHANGES[change](folder)
    if (folder / "a.parquet").exists():  # a tool that copies keeps the time of what it copied
        os.utime(folder / "a.parquet", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert contents(str(folder)) != before


def test_what_has_not_changed_is_hashed_once(bard_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, hashed = fill(tmp_path / "raw"), list[Path]()
    real = inputs._sha256
    monkeypatch.setattr(inputs, "_sha256", lambda path: hashed.append(path) or real(path))
    before = contents(str(folder))
    assert (contents(str(folder)), len(hashed)) == (before, 2)
    memory = bard_home / "cache" / "checksums.json"
    memory.write_text(memory.read_text()[:-9])
    assert (contents(str(folder)), len(hashed)) == (before, 4)


def test_an_image_beside_a_file_that_names_it_is_part_of_the_key(bard_home: Path, tmp_path: Path) -> None:
    folder = fill(tmp_path / "raw")
    (folder / "chat.json").write_text("[]")
    sources = [{"name": "s", "schema_name": "messages", "uri": str(folder / "chat.json")}]
    config = DataConfig.model_validate({"sources": sources})
    before = raw_inputs(config)
    (folder / "a.parquet").write_bytes(b"another picture")
    assert raw_inputs(config) != before


def test_a_prefix_of_s3_goes_by_etags(bard_home: Path, s3_root: str) -> None:
    filesystem = s3fs.S3FileSystem(client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})
    filesystem.pipe_file(f"{s3_root}/raw/a.parquet", b"one")
    before = contents(f"{s3_root}/raw")
    assert contents(f"{s3_root}/raw") == before
    filesystem.pipe_file(f"{s3_root}/raw/a.parquet", b"onE")
    assert contents(f"{s3_root}/raw") != before
    with pytest.raises(InputError, match="nothing there"):
        contents(f"{s3_root}/elsewhere")


FIRST, SECOND = "1" * 40, "2" * 40


class _Hub(BaseHTTPRequestHandler):
    heads: dict[str, str]  # path -> commit

    def do_GET(self) -> None:
        commit = self.heads.get(self.path)
        body = json.dumps({"sha": commit, "id": "owner/name", "siblings": [], "tags": []} if commit else {}).encode()
        self.send_response(200 if commit else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A hub on loopback; what it is given are the commits of its revisions by the API's path."""
    from huggingface_hub import constants

    _Hub.heads = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield _Hub.heads
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_id_is_the_commit_that_main_is_now(hub: dict[str, str], bard_home: Path) -> None:
    hub["/api/models/owner/name"] = hub["/api/models/owner/name/revision/main"] = FIRST
    before = found_model("owner/name")
    assert before.contents.commit == FIRST and found_model("owner/name") == before
    hub["/api/models/owner/name"] = hub["/api/models/owner/name/revision/main"] = SECOND
    after = found_model("owner/name")
    assert after.contents.commit == SECOND and after != before
    assert found_model(f"owner/name@{FIRST}").contents == before.contents, "a commit needs no hub"


def test_the_commit_that_was_found_is_what_is_read(hub: dict[str, str], bard_home: Path) -> None:
    hub["/api/datasets/owner/name"] = hub["/api/datasets/owner/name/revision/main"] = FIRST
    hub["/api/models/owner/eyes/revision/v1"] = SECOND
    raw = RawSource(name="raw", schema_name="finevision", uri="hf://datasets/owner/name/some/folder", revision="main")
    config = DataConfig(sources=(raw,), processor="owner/eyes", processor_revision="v1")
    found = raw_inputs(config)
    fixed = pinned(config, found)
    assert fixed.sources[0].revision == FIRST and fixed.processor_revision == SECOND
    assert raw_inputs(fixed) == found and pinned(fixed, found) == fixed


def test_an_unreachable_hub_names_the_ways_out_and_they_work(
    hub: dict[str, str], bard_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with pytest.raises(InputError, match=r"owner/name at main cannot be resolved.*give the commit.*HF_HUB_OFFLINE=1"):
        found_model("owner/name")
    assert found_model(f"owner/name@{FIRST}").contents.commit == FIRST
    folder = tmp_path / "hub" / "models--owner--name"
    (folder / "snapshots" / SECOND).mkdir(parents=True)
    (folder / "snapshots" / SECOND / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(SECOND)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert found_model("owner/name").contents.commit == SECOND


def test_the_lab_needs_no_look() -> None:
    from bard_core.config.sections.data import LabWorldConfig

    config = DataConfig(lab=LabWorldConfig())
    assert raw_inputs(config).sources == {} and pinned(config, raw_inputs(config)) == config


def test_a_model_that_bard_wrote_is_used_as_it_stands(make_model, bard_home: Path, tmp_path: Path) -> None:
    from bard_core.config.sections.storage import TrackingConfig
    from bard_core.store.refs import DatasetRef
    from bard_core.tracking import register, set_alias

    ref = make_model(tmp_path / "pbm-b8", 8)
    found = found_model(ref.uri)
    assert found.ref is not None and (found.ref.key, found.ref.block_size) == (ref.key, 8) == (found.contents.digest, 8)
    copy = tmp_path / "elsewhere"
    shutil.copytree(ref.uri, copy)
    assert found_model(str(copy)).contents == found.contents, "a place is no content"
    (copy / "manifest.json").unlink()
    plain = found_model(str(copy))
    assert plain.ref is None and plain.contents.digest != found.contents.digest
    tracking = TrackingConfig()
    other = make_model(tmp_path / "pbm-b4", 4)
    dataset = DatasetRef(uri="/d", manifest_sha256="d" * 64, num_train=1, num_eval=1, epoch_samples=1)
    numbers = [register(tracking, model, model, dataset) for model in (ref, other)]
    set_alias(tracking, "champion", numbers[0])
    assert found_model("models:/bard@champion", tracking).ref == ref
    set_alias(tracking, "champion", numbers[1])
    assert found_model("models:/bard@champion", tracking).contents.digest == other.key, "an alias is who has it now"
    assert found_model(f"models:/bard/{numbers[0]}").ref == ref
    with pytest.raises(InputError, match=r"no version 'best' of 'bard' in MLflow; there are: 1 \(pbm-b8\), 2 \(pbm-b4, cha"):
        found_model("models:/bard@best")
