"""A model for others: served where it is told, sent to S3 and to the hub whole."""

import json
import re
import socket
import threading
import time
from pathlib import Path

import openai
import pytest
import uvicorn

from bard_core.store import artifacts, storage

LAB = Path(__file__).resolve().parents[3] / "configs" / "lab.yaml"


def test_a_served_model_answers_where_it_is_told(bard, demo, monkeypatch):
    """``--port 0`` takes any that is free; the line on standard output says which."""
    servers, told, said = [], [], []

    class Kept(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    def client():
        deadline = time.monotonic() + 60
        while not (place := re.search(r"pbm-b4-\w+ on (http://127.0.0.1:[1-9]\d*): a page", "".join(told))):
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
            told.append(bard.capsys.readouterr().out)
        try:
            api = openai.OpenAI(base_url=f"{place[1]}/v1", api_key="secret")
            model = api.models.list().data[0].id
            words = [{"role": "user", "content": "Read A."}]
            said.append(api.chat.completions.create(model=model, messages=words).usage.completion_tokens)
        finally:
            servers[0].should_exit = True

    monkeypatch.setattr(uvicorn, "Server", Kept)
    asking = threading.Thread(target=client)
    asking.start()
    bard("serve", "pbm-b4", "--port", 0, "--api-key", "secret", "--max-new-tokens", 6)
    asking.join(timeout=60)
    assert said and 1 <= said[0] <= 6


def test_a_taken_port_and_an_autoregressive_model_are_not_served(bard, demo):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        bard("serve", "pbm-b4", "--port", port := holder.getsockname()[1], expect=1)
    assert f"bard: cannot listen on 127.0.0.1:{port}: Address already in use; name another --port" in bard.err
    bard("serve", "source", "--port", 0, expect=2)
    assert "is autoregressive" in bard.err


@pytest.fixture
def taken(bard, make_model, tmp_path):
    """An exported model."""
    make_model(tmp_path / "pbm-b4", 4)
    told = json.loads(bard("export", tmp_path / "pbm-b4", "-o", tmp_path / "taken", "--recipe", LAB, "--json"))
    assert "\npbm:\n" in (tmp_path / "taken" / "README.md").read_text()
    assert told["manifest_sha256"] == artifacts.verify(told["uri"]).digest
    return tmp_path / "taken"


def test_push_to_s3_leaves_a_model_that_verifies(bard, taken, s3_root):
    assert bard("push", taken, f"{s3_root}/taken").strip() == f"{s3_root}/taken"
    assert artifacts.verify(f"{s3_root}/taken").digest == artifacts.read_manifest(str(taken)).digest
    (taken / "config.json").write_text("{}")
    bard("push", taken, f"{s3_root}/other", expect=1)
    assert "config.json has" in bard.err and not storage.exists(f"{s3_root}/other")


def test_push_to_the_hub_sends_every_file(bard, taken, hub, monkeypatch):
    bard("push", taken, "o/new", expect=1)
    assert "HF_TOKEN" in bard.err and "Traceback" not in bard.err
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "o/new" in bard("push", taken, "o/new", "--private")
    manifest = artifacts.verify(str(taken))
    assert hub.committed["README.md"] == (taken / "README.md").read_bytes()
    assert hub.committed.keys() == {*(entry.path for entry in manifest.files), artifacts.MANIFEST}
