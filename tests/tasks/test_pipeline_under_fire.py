"""A whole pipeline, killed at random moments, stopped, and run twice at once, ends with the undisturbed run's artifacts."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bard_core.store import artifacts

from .pipelines import Pipeline

pytestmark = pytest.mark.faults
STEPS, KILLS = 24, 20
DECIDED = ("prepare", "models")  # an evaluation holds measured speeds


def keys(home: Path) -> dict[str, dict[str, str]]:
    """Artifact -> file -> sha256, of everything that is decided by the configuration."""
    found = {}
    for stage in DECIDED:
        for manifest in sorted((home / "artifacts" / stage).glob("*/manifest.json")):
            entries = artifacts.verify(str(manifest.parent)).files
            files = {entry.path: entry.sha256 for entry in entries if not entry.path.endswith("curve.jsonl")}
            found[f"{stage}/{manifest.parent.name}"] = {name: sha for name, sha in files.items() if name != "README.md"}
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any]) -> dict[str, dict[str, str]]:
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    pipeline = Pipeline(home, tiny_config(STEPS))
    assert pipeline.finish(1200) == 0, pipeline.text[-4000:]
    return keys(home)


def statuses(home: Path) -> set[str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bard")
    assert experiment is not None
    return {run.info.status for run in client.search_runs([experiment.experiment_id], max_results=1000)}


def killed_until_it_ends(home: Path, config: dict[str, Any], chance: random.Random, most: int) -> int:
    """Kill a pipeline at random moments, at most so often, until it ends before its kill comes; the number of kills."""
    for kills in range(most):
        pipeline = Pipeline(home, config)
        deadline = time.monotonic() + chance.uniform(5.0, 60.0)
        while time.monotonic() < deadline and pipeline.process.poll() is None:
            time.sleep(0.1)
        if pipeline.process.poll() is not None:
            assert pipeline.process.returncode == 0, pipeline.text[-4000:]
            return kills
        pipeline.end()
    last = Pipeline(home, config)
    assert last.finish(1800) == 0, last.text[-4000:]
    return most


def test_killed_twenty_times_at_random(
    undisturbed: dict[str, Any], tmp_path: Path, faults: Any, tiny_config: Callable[..., Any]
) -> None:
    """A pipeline that ends sooner than its twentieth kill is followed by another, in a home of its own."""
    chance, kills, homes = random.Random(12), 0, 0
    while kills < KILLS:
        home = tmp_path / f"home-{homes}"
        kills, homes = kills + killed_until_it_ends(home, tiny_config(STEPS), chance, KILLS - kills), homes + 1
        assert keys(home) == undisturbed and statuses(home) <= {"FINISHED", "KILLED"}
    faults.survived("kill -9 of a whole pipeline", "the undisturbed run's artifacts", times=kills)


WAYS = {"Ctrl-C": signal.SIGINT, "SIGTERM to the group": signal.SIGTERM}


@pytest.mark.parametrize("way", sorted(WAYS))
def test_stopped_while_ray_trains(
    way: str, undisturbed: dict[str, Any], tmp_path: Path, faults: Any, tiny_config: Callable[..., Any]
) -> None:
    home = tmp_path / "home"
    pipeline = Pipeline(home, tiny_config(STEPS))
    pipeline.wait_for("loss=")
    pipeline.signal(WAYS[way], group=True)
    assert pipeline.finish(180) == 75, pipeline.text[-4000:]
    assert pipeline.text.count("run the same command to go on") == 1 and f"of {STEPS}; run" in pipeline.text
    assert "KILLED" in statuses(home) and "RUNNING" not in statuses(home)
    last = Pipeline(home, tiny_config(STEPS))
    assert last.finish(1800) == 0, last.text[-4000:]
    assert keys(home) == undisturbed
    faults.survived(f"{way} while Ray trains", "checkpoint, exit 75, then the undisturbed run's artifacts")


def test_two_at_once_in_one_home(
    undisturbed: dict[str, Any], tmp_path: Path, faults: Any, tiny_config: Callable[..., Any]
) -> None:
    pipelines = [Pipeline(tmp_path / "home", tiny_config(STEPS)) for _ in range(2)]
    assert [pipeline.finish(2400) for pipeline in pipelines] == [0, 0], [p.text[-3000:] for p in pipelines]
    assert keys(tmp_path / "home") == undisturbed and any("waiting for it" in p.text for p in pipelines)
    faults.survived("two pipelines in one home", "both end well")


@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_a_dead_ray_is_started_again(
    victim: str, undisturbed: dict[str, Any], tmp_path: Path, faults: Any, tiny_config: Callable[..., Any]
) -> None:
    pipeline = Pipeline(tmp_path / "home", tiny_config(STEPS))
    pipeline.wait_for("loss=")
    for process in pipeline.family():
        if process.name() == victim:
            process.kill()
    code = pipeline.finish(900)
    if code != 0:  # Ray may end the driver with itself: the next start goes on
        again = Pipeline(tmp_path / "home", tiny_config(STEPS))
        assert again.finish(1800) == 0, again.text[-4000:]
    assert keys(tmp_path / "home") == undisturbed
    faults.survived(f"kill -9 of Ray's {victim}", "retried, or ended and gone on with at the next start")
