"""What a server missed comes later, once; runs that a kill left RUNNING are ended; a stopped run is KILLED."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bard_core import tracking
from bard_core.config.sections.storage import TrackingConfig
from bard_core.store import storage
from bard_core.tracking import debts, runs

from .test_runs_and_models import Flaky, config, flaky, history, store

__all__ = ["config", "flaky", "store"]


@pytest.fixture(autouse=True)
def no_debts(config: TrackingConfig) -> None:
    """The home is shared by the tests of this file."""
    for path in (storage.home() / "undelivered").glob("*"):
        path.unlink()


def stage_runs(config: TrackingConfig, name: str) -> list[Any]:
    client, experiment = tracking.client_of(config)
    return list(client.search_runs([experiment], f"attributes.run_name = '{name}'"))


@pytest.mark.parametrize("known", [True, False])
def test_what_a_server_missed_is_delivered_at_the_next_start_once(
    config: TrackingConfig, flaky: Flaky, known: bool, monkeypatch: pytest.MonkeyPatch, faults: Any
) -> None:
    monkeypatch.setattr(runs, "FIRST_PAUSE_S", 0.01)
    flaky.down = not known
    with tracking.stage_run(config, None, "pbm", f"pbm-{known}", {"lr": 0.1}) as run:
        run.log_metrics({"loss": 5.0}, step=1)
        flaky.down = True
        for step in range(2, 30):
            run.log_metrics({"loss": float(step)}, step=step)
    assert len(debts.owed()) == 1
    assert tracking.settle(config) == 1, "the server is still away"
    flaky.down = False
    if known:
        (found,) = stage_runs(config, f"pbm-{known}")
        assert found.info.status == "RUNNING", "not FINISHED before all its points are there"
        flaky.late = True  # this delivery arrives, but its answer does not
        assert tracking.settle(config) == 1
    tracking.open_pipeline(config, "demo", {})
    assert debts.owed() == {} and tracking.settle(config) == 0
    (found,) = stage_runs(config, f"pbm-{known}")
    assert found.info.status == "FINISHED" and found.data.params == {"lr": "0.1"}
    assert history(config, found.info.run_id, "loss") == [(1, 5.0), *((step, float(step)) for step in range(2, 30))]
    faults.survived("MLflow away at a stage's end", "delivered by the next start, once", times=1)


def test_a_damaged_debt_is_set_aside_and_holds_up_nothing(config: TrackingConfig, flaky: Flaky, faults: Any) -> None:
    flaky.down = True
    with tracking.stage_run(config, None, "pbm", "whole", {}):
        pass
    flaky.down = False
    damaged = storage.home() / "undelivered" / "0.json"
    damaged.write_text('{"tracking_uri": ')
    assert tracking.settle(config) == 0 and damaged.with_suffix(".damaged").exists()
    assert stage_runs(config, "whole")[0].info.status == "FINISHED"
    faults.survived("undelivered metrics file damaged", "set aside, told", times=1)


KILLED = """
import os, signal
from bard_core import tracking
from bard_core.config.sections.storage import TrackingConfig
config = TrackingConfig(experiment="test_runs_of_a_killed_process_are_ended_at_the_next_start")
parent = tracking.open_pipeline(config, "killed", {})
with tracking.stage_run(config, parent, "pbm", "killed stage", {}):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_runs_of_a_killed_process_are_ended_at_the_next_start(config: TrackingConfig, store: Path, faults: Any) -> None:
    with tracking.stage_run(config, None, "pbm", "mine", {}) as mine:
        done = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "BARD_HOME": str(store)}, check=False)
        assert done.returncode == -signal.SIGKILL
        (left,) = stage_runs(config, "killed stage")
        assert left.info.status == "RUNNING"
        again = tracking.open_pipeline(config, "killed", {})
        client, _ = tracking.client_of(config)
        assert client.get_run(left.info.run_id).info.status == "KILLED"
        assert client.get_run(str(mine.run_id)).info.status == "RUNNING", "ours is alive"
        assert left.data.tags["mlflow.parentRunId"] == again and client.get_run(again).info.status == "RUNNING"
    tracking.abandon_pipeline(config, again, "KILLED")
    assert client.get_run(again).info.status == "KILLED"
    assert tracking.open_pipeline(config, "killed", {}) == again
    tracking.close_pipeline(config, again, {})
    tracking.abandon_pipeline(config, again, "FAILED")
    assert client.get_run(again).info.status == "FINISHED"
    faults.survived("kill -9 with an MLflow run open", "ended as KILLED at the next start", times=1)
