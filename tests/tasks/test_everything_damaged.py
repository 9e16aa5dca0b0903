"""A finished pipeline, then every kind of its files damaged: the same command ends well, tells, and keeps what is whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bard_core.store import artifacts

from .pipelines import Pipeline

pytestmark = pytest.mark.faults


def flip(path: Path, at: float = 0.5) -> None:
    """Flip one bit."""
    body = bytearray(path.read_bytes())
    body[int(at * len(body))] ^= 1
    path.write_bytes(body)


def standing(home: Path) -> dict[str, str]:
    """Every artifact of the home, a run's last checkpoints too, and its digest; all are whole."""
    folders = [path.parent for place in ("artifacts", "checkpoints") for path in (home / place).rglob("manifest.json")]
    return {str(f.relative_to(home)): artifacts.verify(str(f)).digest for f in sorted(folders) if ".damaged" not in str(f)}


def registered(home: Path) -> dict[str, dict[str, float]]:
    """Model -> its scores, of those that have a version."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    versions = {version.tags["bard.manifest_sha256"] for version in client.search_model_versions("name='bard'")}
    experiment = client.get_experiment_by_name("bard")
    assert experiment is not None
    models = client.search_logged_models([experiment.experiment_id])
    return {
        model.name: {metric.key: metric.value for metric in model.metrics}
        for model in models
        if model.tags["bard.manifest_sha256"] in versions
    }


def test_everything_damaged_at_once(tmp_path: Path, faults: Any, tiny_config: Callable[..., Any]) -> None:
    home, config = tmp_path / "home", tiny_config(8)
    config["swd"]["targets"] = "offline"
    first = Pipeline(home, config)
    assert first.finish(1800) == 0, first.text[-4000:]
    whole, scores = standing(home), registered(home)
    assert len(scores) == 4 and all("accuracy" in of for of in scores.values())

    checkpoints, data = home / "checkpoints", home / "artifacts" / "prepare"
    wounds = {
        "a final checkpoint": next(checkpoints.glob("source-*/step-000008/__0_0.distcp")),
        "another, of who asks the teacher": next(checkpoints.glob("swd-*/step-000008/__0_0.distcp")),
        "a run's base model": next(checkpoints.glob("source-*/base/model.safetensors")),
        "a teacher's answers": next(data.glob("dataset-*-teacher/*/shard-000000/topk.safetensors")),
        "a unit of the dataset": next(data.glob("units/lab-train-*/rows.arrow")),
        "the dataset": next(path for path in data.glob("dataset-*/index.arrow")),
    }
    for wound in wounds.values():
        flip(wound)
    databases = {"Flyte's local cache": home / "flyte" / "cache" / "cache.db", "mlflow.db": home / "mlflow.db"}
    for database in databases.values():
        flip(database, at=0.0)

    again = Pipeline(home, config)
    assert again.finish(1800) == 0, again.text[-4000:]
    for what, wound in wounds.items():
        aside = f"{wound.parent}.damaged"
        assert f"set aside as {aside}" in again.text and Path(aside, wound.name).is_file(), what
    assert "Flyte's local cache begins anew" in again.text and "MLflow begins anew" in again.text
    assert standing(home) == whole, (
        "what was damaged is the same again, and what was whole (speeds are never twice the same) stayed"
    )
    assert registered(home) == scores

    last = Pipeline(home, config)
    assert last.finish(600) == 0 and "set aside" not in last.text and "loss=" not in last.text, "repaired once"
    for what in (*wounds, *databases):
        faults.survived(f"a bit flipped in {what}, all at once", "told, set aside, made again, the rest kept")
