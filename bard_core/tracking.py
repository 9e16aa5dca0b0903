"""MLflow, and the only place that imports it: one parent run a pipeline, a child run a stage, one LoggedModel a checkpoint.

Weights stay where they are; MLflow holds their uri and digest. Training never stops for tracking: what cannot be delivered is
kept, retried with the next metrics, and flushed when the stage ends.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bard_core import storage
from bard_core.artifacts import EvalResult, ModelRef
from bard_core.config import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
DIGEST_TAG = "bard.manifest_sha256"


def tracking_uri(config: TrackingConfig) -> str:
    """The configured server, else ``$MLFLOW_TRACKING_URI``, else sqlite in the home folder."""
    return config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.home() / 'mlflow.db'}"


@lru_cache(maxsize=4)
def _client(uri: str, experiment: str) -> "tuple[MlflowClient, str]":
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is not None:
        return client, str(found.experiment_id)
    place = str(storage.home() / "mlartifacts" / experiment) if uri.startswith("sqlite") else None
    try:
        return client, str(client.create_experiment(experiment, artifact_location=place))
    except MlflowException:  # another task created it in the meantime
        return client, str(client.get_experiment_by_name(experiment).experiment_id)


def client_of(config: TrackingConfig) -> "tuple[MlflowClient, str]":
    """(client, experiment id)."""
    return _client(tracking_uri(config), config.experiment)


def open_pipeline(config: TrackingConfig, name: str, params: dict[str, Any]) -> str:
    """Start the parent run of a pipeline; returns its id."""
    client, experiment = client_of(config)
    run = client.create_run(experiment, run_name=name, tags={"bard.kind": "pipeline"})
    for key, value in params.items():
        client.log_param(run.info.run_id, key, str(value)[:500])
    return str(run.info.run_id)


def close_pipeline(config: TrackingConfig, run_id: str, metrics: dict[str, float]) -> None:
    """Write the pipeline's own numbers and end its run; calling it again changes nothing but the numbers."""
    client, _ = client_of(config)
    for key, value in metrics.items():
        client.log_metric(run_id, key, value)
    client.set_terminated(run_id, status="FINISHED")


class StageRun:
    """An open child run. Metrics that cannot be delivered wait for the next call."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self._waiting: list[Any] = []

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        import time

        from mlflow.entities import Metric

        self._waiting += [Metric(key, float(value), int(time.time() * 1000), step) for key, value in metrics.items()]
        self.deliver()

    def deliver(self) -> bool:
        """Send what waits, in batches that are dropped only once accepted; False when something still waits."""
        try:
            while self._waiting:
                batch = self._waiting[:500]
                self.client.log_batch(self.run_id, metrics=batch)
                self._waiting = self._waiting[len(batch) :]
        except Exception as error:  # noqa: BLE001 - tracking must never stop training
            log.warning("tracking is unreachable (%s); %d metrics wait", error, len(self._waiting))
        return not self._waiting

    def log_file(self, path: Path) -> None:
        try:
            self.client.log_artifact(self.run_id, str(path))
        except Exception as error:  # noqa: BLE001
            log.warning("could not log %s: %s", path, error)


@contextmanager
def stage_run(config: TrackingConfig, parent_run_id: str, stage: str, name: str, params: dict[str, Any]) -> Iterator[StageRun]:
    """A child run of the pipeline, ended as FINISHED, or FAILED when the body raises."""
    client, experiment = client_of(config)
    tags = {"mlflow.parentRunId": parent_run_id, "bard.kind": "stage", "bard.stage": stage}
    run = client.create_run(experiment, run_name=name, tags=tags)
    stage_log = StageRun(client, str(run.info.run_id))
    for key, value in params.items():
        client.log_param(stage_log.run_id, key, str(value)[:500])
    try:
        yield stage_log
    except BaseException:
        client.set_terminated(stage_log.run_id, status="FAILED")
        raise
    if not stage_log.deliver():
        log.warning("run %s ends with undelivered metrics; the training curve has them all", stage_log.run_id)
    client.set_terminated(stage_log.run_id, status="FINISHED")


def log_model(config: TrackingConfig, run_id: str, ref: ModelRef) -> str:
    """The LoggedModel of a checkpoint, found by its digest or created; returns its id. Weights are not uploaded."""
    client, experiment = client_of(config)
    found = client.search_logged_models([experiment], filter_string=f"tags.`{DIGEST_TAG}` = '{ref.key}'", max_results=1)
    if found:
        return str(found[0].model_id)
    model = client.create_logged_model(
        experiment,
        name=ref.name,
        source_run_id=run_id,
        tags={DIGEST_TAG: ref.key, "bard.uri": ref.uri, "bard.stage": ref.stage},
        params={"stage": ref.stage, "block_size": str(ref.block_size), "parent_sha256": ref.parent_sha256 or ""},
        model_type="block-diffusion" if ref.block_size > 1 else "autoregressive",
    )
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def log_evaluation(config: TrackingConfig, run: StageRun, result: EvalResult, dataset_digest: str) -> None:
    """Attach a result's numbers to the model's LoggedModel, linked to the suite, and to the evaluation's own run."""
    model_id = result.model.mlflow_model_id or log_model(config, run.run_id, result.model)
    for name, value in headline(result).items():
        run.client.log_metric(
            run.run_id, name, value, model_id=model_id, dataset_name=result.suite, dataset_digest=dataset_digest[:36]
        )


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
