"""Tracking on a real sqlite store, and on one that goes away and comes back."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bard_core import tracking
from bard_core.config.sections.storage import TrackingConfig
from bard_core.store.refs import EvalResult, ModelRef
from bard_core.tracking import runs

MODEL = ModelRef(uri="s3://bucket/m", manifest_sha256="a" * 64, stage="pbm", block_size=8, parent_sha256="b" * 64)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all: making a store takes seconds."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def config(store: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TrackingConfig:
    monkeypatch.setenv("BARD_HOME", str(store))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(runs, "FIRST_PAUSE_S", 0.0)
    return TrackingConfig(experiment=request.node.name)


def history(config: TrackingConfig, run_id: str, key: str) -> list[tuple[int, float]]:
    client, _ = tracking.client_of(config)
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


def test_a_pipeline_its_stages_and_its_models(config: TrackingConfig, store: Path, tmp_path: Path) -> None:
    parent = tracking.open_pipeline(config, "demo", {"data": "d" * 9000})
    curve = tmp_path / "curve.jsonl"
    curve.write_text("{}\n")
    with tracking.stage_run(config, parent, "pbm", "pbm-b8", {"lr": 0.1}) as run:
        run.log_metrics({"loss": 2.0}, step=1)
        run.log_metrics({"loss": 1.0}, step=2)
        run.log_file(curve)
        first = tracking.log_model(config, run.run_id, MODEL)
    with pytest.raises(KeyboardInterrupt), tracking.stage_run(config, parent, "swd", "swd-b8", {}) as failed:
        raise KeyboardInterrupt
    tracking.close_pipeline(config, parent, {"accuracy": 0.9})

    client, experiment = tracking.client_of(config)
    assert history(config, run.run_id, "loss") == [(1, 2.0), (2, 1.0)]
    done = client.get_run(run.run_id)
    assert (done.info.status, done.data.tags["mlflow.parentRunId"], done.data.params) == ("FINISHED", parent, {"lr": "0.1"})
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["curve.jsonl"]
    assert client.get_run(failed.run_id).info.status == "KILLED"
    assert client.get_run(parent).data.metrics == {"accuracy": 0.9}
    assert (store / "mlflow.db").exists() and (store / "mlartifacts" / config.experiment).is_dir()

    assert tracking.log_model(config, None, MODEL) == first
    other = tracking.log_model(config, None, MODEL.model_copy(update={"manifest_sha256": "c" * 64}))
    models = {m.model_id: m for m in client.search_logged_models([experiment])}
    assert set(models) == {first, other}
    assert models[first].tags["bard.uri"] == "s3://bucket/m" and models[first].params["block_size"] == "8"


def test_scores_are_attached_to_the_model(config: TrackingConfig) -> None:
    numbers: dict[str, float] = dict.fromkeys(("accuracy_stderr", "tokens_per_s", "ar_tokens_per_s", "speedup"), 1.0)
    result = EvalResult(
        uri="x", manifest_sha256="e" * 64, model=MODEL, suite="lab", suite_digest="f" * 64, num_samples=4, accuracy=0.75,
        tokens_per_forward=3.5, **numbers,
    )  # fmt: skip
    with tracking.stage_run(config, None, "evaluate", "evaluate", {}) as run:
        tracking.log_evaluation(config, run, result, result.suite_digest)
    client, _ = tracking.client_of(config)
    logged = client.get_logged_model(tracking.log_model(config, None, MODEL))
    found = {m.key: (m.value, m.dataset_name, m.run_id) for m in logged.metrics}
    assert found["accuracy"] == (0.75, "lab", run.run_id) and found["tokens_per_forward"][0] == 3.5
    assert {key: value for key, (value, _, _) in found.items()} == tracking.headline(result)


class Flaky:
    """A client whose calls fail while ``down``; with ``late``, the next batch arrives but its answer does not."""

    def __init__(self, client: Any) -> None:
        self._client, self.down, self.late = client, False, False

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.down:
                raise ConnectionError("no route to host")
            answer = getattr(self._client, name)(*args, **kwargs)
            if self.late:
                self.late = False
                raise TimeoutError("no answer in time")
            return answer

        return call


@pytest.fixture
def flaky(config: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> Flaky:
    client, experiment = tracking.client_of(config)
    flaky = Flaky(client)
    monkeypatch.setattr(runs, "client_of", lambda _: (flaky, experiment))
    return flaky


def test_metrics_wait_for_the_server_and_arrive_once(config: TrackingConfig, flaky: Flaky) -> None:
    flaky.down = True
    with tracking.stage_run(config, None, "pbm", "pbm", {}) as run:
        assert run.run_id is None
        run.log_metrics({"loss": 1.0}, step=1)
        flaky.down = False
        run.log_metrics({"loss": 2.0}, step=2)
        flaky.late = True
        run.log_metrics({"loss": 3.0}, step=3)
        flaky.down = True
        run.log_metrics({"loss": 4.0}, step=4)
        flaky.down = False
    assert history(config, run.run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert flaky.get_run(run.run_id).info.status == "FINISHED"


def test_a_dead_server_stops_no_training_and_is_not_asked_at_every_step(
    config: TrackingConfig, flaky: Flaky, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "FIRST_PAUSE_S", 0.01)
    flaky.down = True
    with tracking.stage_run(config, None, "pbm", "pbm", {}) as run:
        for step in range(1000):
            run.log_metrics({"loss": 1.0}, step=step)
        run.log_file(Path("curve.jsonl"))
        assert tracking.log_model(config, run.run_id, MODEL) is None
    assert "1000 undelivered metrics are kept for the next start" in caplog.text and len(caplog.records) < 30
    tracking.close_pipeline(config, "0" * 32, {})
    with pytest.raises(tracking.TrackingError, match=r"no MLflow at sqlite.*start it"):
        tracking.open_pipeline(config, "demo", {})
    flaky.down = False  # it was started
    assert tracking.open_pipeline(config, "demo", {})


def test_a_refused_metric_does_not_hold_up_the_others(config: TrackingConfig) -> None:
    with tracking.stage_run(config, None, "pbm", "pbm", {}) as run:
        run.log_metrics({"loss": 1.0, "bad\nname": 2.0, "rate": 3.0}, step=1)
    client, _ = tracking.client_of(config)
    assert client.get_run(run.run_id).data.metrics == {"loss": 1.0, "rate": 3.0}


def test_threads_share_a_run(config: TrackingConfig) -> None:
    with tracking.stage_run(config, None, "pbm", "pbm", {}) as run:
        threads = [
            threading.Thread(target=lambda i=i: [run.log_metrics({f"m{i}": float(s)}, step=s) for s in range(5)])
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(history(config, run.run_id, f"m{i}") == [(s, float(s)) for s in range(5)] for i in range(4))


START = """
import sys
from bard_core import tracking
from bard_core.config.sections.storage import TrackingConfig
import mlflow
print("ready", flush=True)
sys.stdin.readline()
with tracking.stage_run(TrackingConfig(experiment="test_processes_may_create_the_store_together"), None, "pbm", "pbm", {}) as run:
    run.log_metrics({"loss": 1.0})
assert run.run_id is not None
"""


@pytest.mark.slow
def test_processes_may_create_the_store_together(config: TrackingConfig, bard_home: Path) -> None:
    arguments: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([sys.executable, "-c", START], **arguments) for _ in range(2)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    client, experiment = tracking.client_of(config)
    assert [run.data.metrics for run in client.search_runs([experiment])] == [{"loss": 1.0}] * 2
