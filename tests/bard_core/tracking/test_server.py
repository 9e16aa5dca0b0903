"""Tracking against a real MLflow server that freezes, dies and comes back in the middle of a run (make test-faults)."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from bard_core import tracking
from bard_core.config.sections.storage import TrackingConfig


def history(config: TrackingConfig, run_id: str, key: str) -> list[tuple[int, float]]:
    client, _ = tracking.client_of(config)
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


class Server:
    """A real MLflow server on loopback that can be stopped and started again on the same store."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.process = folder, None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        store = [
            "--backend-store-uri",
            f"sqlite:///{self.folder / 'server.db'}",
            "--artifacts-destination",
            str(self.folder / "a"),
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*command, *store], env=environment, start_new_session=True, **quiet)
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)

    def signal(self, number: int) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        self.process = None


@pytest.mark.faults
def test_a_server_that_freezes_dies_and_comes_back(
    tmp_path: Path, bard_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Training goes on; every metric arrives once: those of before, of the freeze, of the outage, and of after."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    server = Server(tmp_path)
    server.start()
    try:
        config = TrackingConfig(tracking_uri=server.uri, experiment="faults")
        with tracking.stage_run(config, None, "pbm", "pbm", {}) as run:
            run.log_metrics({"loss": 1.0}, step=1)
            server.signal(signal.SIGSTOP)  # slow: answers come late or never, what was sent may have arrived
            started = time.monotonic()
            for step in range(2, 40):
                run.log_metrics({"loss": float(step)}, step=step)
            assert time.monotonic() - started < 30  # a frozen server is not asked at every step
            server.signal(signal.SIGCONT)
            server.stop()
            for step in range(40, 60):
                run.log_metrics({"loss": float(step)}, step=step)
            assert "metrics wait" in caplog.text
            server.start()
            monkeypatch.setattr(run, "_not_before", 0.0)
            run.log_metrics({"loss": 60.0}, step=60)
        assert history(config, run.run_id, "loss") == [(step, float(step)) for step in range(1, 61)]
    finally:
        server.stop()
