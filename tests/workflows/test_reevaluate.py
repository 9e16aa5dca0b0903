"""Re-evaluation, end to end: a real MLflow server and its webhook, the receiver, pyflyte, lmms-eval, the gate, the aliases."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bard_core import tracking
from bard_core.config.sections.storage import TrackingConfig
from bard_core.promotion import reevaluate as rejudging
from bard_core.promotion.promote import score_of
from bard_core.promotion.request import Request
from bard_core.promotion.webhook import launch_command

SECRET = "a secret of the tests"
EVALUATION = {"suite": "lab", "batch_size": 4, "max_samples": 4, "speed_samples": 1, "decoding": {"max_new_tokens": 8}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, ready: Callable[[], Any], seconds: float = 200.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(1.0)
    return found


def answers(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return int(error.code)
    except OSError:
        return 0


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts programs in one home folder, output to a file each; ends those that still run."""
    programs: list[subprocess.Popen[bytes]] = []
    environment = {
        **os.environ,
        "BARD_HOME": str(tmp_path / "home"),
        "FLYTE_SDK_LOCAL_SANDBOX": str(tmp_path / "home" / "sandbox"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "0",  # s; else a webhook made just after the first registration is not seen at the second
        "BARD_WEBHOOK_SECRET": SECRET,
    }

    def start(name: str, *command: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.log").open("wb") as log:
            program = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path)
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.terminate()
    for program in programs:
        program.wait(30)


@pytest.mark.slow
def test_a_registered_version_is_judged_once_and_the_gate_says_why(
    started: Any, make_model: Any, lab_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BARD_HOME", str(tmp_path / "home"))
    server, receiver = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    place = ("--host", "127.0.0.1", "--port", server.rsplit(":", 1)[1], "--workers", "1")
    started("server", sys.executable, "-m", "mlflow", "server", *place, "--backend-store-uri", store)
    config = TrackingConfig(tracking_uri=server)
    inputs = tmp_path / "inputs.yaml"
    body = {"evaluation": EVALUATION, "gate": {"accuracy_margin": 1.0}, "tracking": {"tracking_uri": server}}
    inputs.write_text(json.dumps(body))
    port = receiver.rsplit(":", 1)[1]
    started("receiver", sys.executable, "-m", "bard_core.promotion.webhook", str(inputs), "--port", port, "--poll-s", "0")
    source, model = make_model(tmp_path / "source", 1), make_model(tmp_path / "b4", 4)
    wait_for("MLflow", lambda: answers(f"{server}/health") == 200)
    assert tracking.register(config, source, source, lab_dataset) == 1
    wait_for("the receiver", lambda: answers(receiver) == 200)
    client, experiment = tracking.client_of(config)
    client.create_webhook("bard", receiver, ["model_version.created"], secret=SECRET)

    wrong = {"X-MLflow-Signature": "v1,AAAA", "X-MLflow-Delivery-Id": "1", "X-MLflow-Timestamp": str(int(time.time()))}
    assert answers(receiver, b"{}", wrong) == 401
    assert tracking.register(config, model, source, lab_dataset) == 2  # the webhook fires; and at once, as CI would:
    ci = started("ci", *launch_command(inputs, 0, []))

    def gate() -> str | None:
        return {v.number: v.tags.get("bard.gate") for v in tracking.versions(config)}[2]

    verdict = wait_for("the gate", gate)
    assert ci.wait(200) == 0, (tmp_path / "ci.log").read_text()[-3000:]
    told = tmp_path / "receiver.log"
    wait_for("the receiver's launch", lambda: "re-evaluation of version 2 ended" in told.read_text())
    assert "202 version 2 queued" in told.read_text() and "version 2 ended with 0" in told.read_text()
    runs = client.search_runs([experiment], "tags.`bard.stage` = 'evaluate'")
    assert Counter(run.data.tags["mlflow.runName"] for run in runs) == {"evaluate source": 1, "evaluate pbm-b4": 1}

    request = Request.read(inputs)
    versions = {version.number: version for version in tracking.versions(config)}
    result = score_of(config, versions[2], request.evaluation)
    assert result is not None and result.num_samples == 4
    logged = {item.name: item.metrics for item in tracking.scored_models(config)}["pbm-b4"]
    assert {name: logged[name] for name in tracking.headline(result)} == tracking.headline(result)
    written = json.loads(next((Path(result.uri) / "lab").glob("*_results.json")).read_text())
    assert written["results"]["bard_lab"]["exact,none"] == logged["accuracy"] == logged["lab.exact"]
    assert versions[2].tags["bard.gate.reason"] and versions[2].tags["bard.gate.against"] == "1"
    if verdict == "promoted":
        assert versions[2].aliases == ("champion",)
    else:
        assert (versions[1].aliases, versions[2].aliases) == (("champion",), ("challenger",))

    client.delete_webhook(client.list_webhooks()[0].webhook_id)
    assert tracking.register(config, model, source, lab_dataset) == 2 and rejudging.plan(request) == []
    renewed = make_model(tmp_path / "b4", 4, seed=1)
    assert renewed.uri == model.uri and tracking.register(config, renewed, source, lab_dataset) == 3
    assert [item.number for item in rejudging.plan(request)] == [3], "new weights at an old path"
