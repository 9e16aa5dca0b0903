"""One LoggedModel a checkpoint: what it is, where it came from, and every score, linked to the data it was measured on."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bard_core.config.sections.storage import TrackingConfig
from bard_core.store import artifacts
from bard_core.store.refs import EvalResult, ModelRef
from bard_core.tracking import runs
from bard_core.tracking.runs import StageRun, TrackingError, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Metric

DIGEST_TAG = "bard.manifest_sha256"
EVALUATION_TAG = "bard.evaluation."  # + protocol digest -> "<manifest sha256> <uri>" of the evaluation


@dataclass(frozen=True)
class LoggedScores:
    """A checkpoint as MLflow shows it: its parameters and its newest value of every metric."""

    model_id: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]


def log_model(config: TrackingConfig, run_id: str | None, ref: ModelRef) -> str | None:
    """The LoggedModel of a checkpoint, found by its digest or created; returns its id, or None while MLflow is away.

    Weights are not uploaded. ``log_evaluation`` creates it later when it could not be created here.
    """
    return runs.survive(f"log the model {ref.name}", lambda: _log_model(config, run_id, ref))


def _log_model(config: TrackingConfig, run_id: str | None, ref: ModelRef) -> str:
    client, experiment = runs.client_of(config)
    if (found := find_model(config, ref.key)) is not None:
        return str(found.model_id)
    model = client.create_logged_model(
        experiment,
        name=ref.name,
        source_run_id=run_id,
        tags={DIGEST_TAG: ref.key, "bard.uri": ref.uri, "bard.stage": ref.stage},
        params={
            "stage": ref.stage,
            "block_size": str(ref.block_size),
            "manifest_sha256": ref.key,
            "parent_sha256": ref.parent_sha256 or "",
            **_recorded(ref),
            **provenance(),
        },
        model_type="block-diffusion" if ref.block_size > 1 else "autoregressive",
    )
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def find_model(config: TrackingConfig, digest: str) -> "LoggedModel | None":
    client, experiment = runs.client_of(config)
    found = client.search_logged_models([experiment], filter_string=f"tags.`{DIGEST_TAG}` = '{digest}'", max_results=1)
    return found[0] if found else None


def _recorded(ref: ModelRef) -> dict[str, str]:
    """What the model's own manifest says; nothing where it cannot be read now."""
    try:
        manifest = artifacts.read_manifest(ref.uri)
    except Exception:  # noqa: BLE001 - a description; its lack stops nothing
        return {}
    return {"step": str(manifest.step or 0), "config_digest": manifest.config_digest or ""}


@cache
def provenance() -> dict[str, str]:
    """What runs: ``$BARD_GIT_COMMIT`` (or git's, ``+changes`` when edited) and Flyte's image (or ``$BARD_IMAGE``)."""
    commit = os.environ.get("BARD_GIT_COMMIT") or _git("rev-parse", "HEAD")
    if commit and "BARD_GIT_COMMIT" not in os.environ and _git("status", "--porcelain"):
        commit += "+changes"
    image = os.environ.get("FLYTE_INTERNAL_IMAGE") or os.environ.get("BARD_IMAGE") or "none"
    return {"git_commit": commit or "unknown", "image": image}


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def log_evaluation(config: TrackingConfig, run: StageRun, result: EvalResult, protocol: str) -> None:
    """Attach a result to the model's LoggedModel, linked to the suite and the benchmarks, and to the evaluation's own run.

    Raises:
        TrackingError: MLflow cannot be reached. A score that nobody can compare is not a result, so the stage is to be retried.
    """
    try:
        if not run.deliver() or run.run_id is None:
            raise ConnectionError("the run could not be written")
        model_id = _log_model(config, run.run_id, result.model)
        run.client.log_batch(run.run_id, metrics=list(_linked(result, model_id)))
        run.client.set_logged_model_tags(model_id, {f"{EVALUATION_TAG}{protocol}": f"{result.key} {result.uri}"})
    except Exception as error:
        raise TrackingError(
            f"the scores of {result.model.name} did not reach MLflow at {tracking_uri(config)} "
            f"({type(error).__name__}: {error}); see that it is up and run evaluate again"
        ) from error


def log_comparison(config: TrackingConfig, run: StageRun, result: EvalResult, numbers: dict[str, float]) -> None:
    """Attach to a model what only the comparison with others tells (AUP, speed-up at parity). MLflow away: logged, not raised."""

    def send() -> None:
        if not run.deliver() or run.run_id is None:
            raise ConnectionError("the run could not be written")
        model_id = _log_model(config, run.run_id, result.model)
        metrics = [_metric(name, value, model_id, result.suite, result.suite_digest) for name, value in numbers.items()]
        run.client.log_batch(run.run_id, metrics=metrics)

    runs.survive(f"log the comparison of {result.model.name}", send)


def _metric(name: str, value: float, model_id: str, dataset: str, digest: str) -> "Metric":
    """A metric that knows its model and its data. A fingerprint is cut to the 36 characters that MLflow keeps."""
    from mlflow.entities import Metric

    key = re.sub(r"[^\w\-. /]", "_", name)
    now_ms = int(time.time() * 1000)
    return Metric(key, value, now_ms, 0, model_id=model_id, dataset_name=dataset, dataset_digest=digest[:36])


def _linked(result: EvalResult, model_id: str) -> "Iterator[Metric]":
    """The suite's numbers, linked to the suite, then every benchmark's, linked to its own data."""
    for name, value in headline(result).items():
        yield _metric(name, value, model_id, result.suite, result.suite_digest)
    for score in result.benchmarks:
        numbers = {"": score.accuracy, "_stderr": score.accuracy_stderr}
        numbers |= {f".{name}": value for name, value in score.metrics.items()}
        for name, value in numbers.items():
            yield _metric(f"{score.name}{name}", value, model_id, score.name, score.dataset_fingerprint)


def evaluation_of(config: TrackingConfig, digest: str, protocol: str) -> tuple[str, str] | None:
    """(uri, manifest sha256) of a checkpoint's evaluation under ``protocol``, if it has one."""
    found = find_model(config, digest)
    value = found.tags.get(f"{EVALUATION_TAG}{protocol}") if found is not None else None
    if value is None:
        return None
    key, _, uri = value.partition(" ")
    return uri, key


def scored_models(config: TrackingConfig) -> list[LoggedScores]:
    """Every checkpoint of the experiment, oldest first."""
    client, experiment = runs.client_of(config)
    models: list[LoggedScores] = []
    token: str | None = None
    while True:
        page = client.search_logged_models(
            [experiment],
            max_results=200,
            order_by=[{"field_name": "creation_timestamp", "ascending": True}],
            page_token=token,
        )
        models += [_scores_of(model) for model in page]
        token = page.token
        if not token:
            return models


def _scores_of(model: Any) -> LoggedScores:
    newest = sorted(model.metrics or [], key=lambda metric: metric.timestamp)
    metrics = {metric.key: float(metric.value) for metric in newest}
    return LoggedScores(str(model.model_id), str(model.name), dict(model.params), dict(model.tags), metrics)


def headline(result: EvalResult) -> dict[str, float]:
    """The numbers by which checkpoints are compared."""
    return {
        "accuracy": result.accuracy,
        "accuracy_stderr": result.accuracy_stderr,
        "tokens_per_forward": result.tokens_per_forward,
        "tokens_per_s": result.tokens_per_s,
        "ar_tokens_per_s": result.ar_tokens_per_s,
        "speedup": result.speedup,
    }
