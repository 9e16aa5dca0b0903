"""Runs: one a stage, the children of a pipeline's (``pipelines``).

Training never stops for tracking: what cannot be delivered
waits in memory, is tried again with later metrics (after a growing pause, so that a dead server costs little time) and is
flushed when the stage ends; what is left then is a debt (see ``debts``), and the run does not end before it is paid. A metric
sent twice counts once, because MLflow keys it by name, step, time and value.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bard_core.config.sections.storage import TrackingConfig
from bard_core.store import claims, databases, storage
from bard_core.tracking.debts import Debt, locked, owe

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)
BATCH = 500  # metrics a call; the server takes 1000
PROCESS_TAG = "bard.process"
FLUSH_TRIES, FIRST_PAUSE_S, LONGEST_PAUSE_S = 3, 1.0, 60.0


class TrackingError(Exception):
    """MLflow cannot be reached where nothing would be lost by stopping: says where and how to fix it."""


def tracking_uri(config: TrackingConfig) -> str:
    """The configured server, else ``$MLFLOW_TRACKING_URI``, else sqlite in the home folder."""
    return config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.home() / 'mlflow.db'}"


def client_of(config: TrackingConfig) -> "tuple[MlflowClient, str]":
    """(client, experiment id); the store and the experiment are made when missing."""
    return _client(tracking_uri(config), config.experiment)


@lru_cache(maxsize=4)
def _client(uri: str, experiment: str) -> "tuple[MlflowClient, str]":
    # MLflow's own defaults wait minutes for a dead server.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for noisy in ("alembic", "mlflow.store"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    local = uri.startswith("sqlite")
    # Processes that create one sqlite store together break each other's migrations.
    with locked("mlflow") if local else nullcontext():
        if local:
            file = Path(uri.removeprefix("sqlite:///"))
            databases.set_aside_if_damaged(file, file, "MLflow begins anew; the pipeline's end registers its models again")
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            place = str(storage.home() / "mlartifacts" / experiment) if local else None
            return client, _create_experiment(client, experiment, place)
    return client, str(found.experiment_id)


def _create_experiment(client: "MlflowClient", experiment: str, place: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(experiment, artifact_location=place))
    except MlflowException:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
        return str(found.experiment_id)  # another machine created it in the meantime


def survive(what: str, action: Callable[[], Any]) -> Any:
    """The action's result, or None and a warning: tracking must never stop the work it follows."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001
        log.warning("tracking: could not %s (%s: %s)", what, type(error).__name__, error)
        return None


def create_run(config: TrackingConfig, name: str, tags: dict[str, str], params: dict[str, Any]) -> str:
    from mlflow.entities import Param

    client, experiment = client_of(config)
    run = client.create_run(experiment, run_name=name, tags={**tags, PROCESS_TAG: claims.this_process()})
    if params:
        wanted = [Param(key, str(value)[:500]) for key, value in params.items()]
        survive("log parameters", lambda: client.log_batch(run.info.run_id, params=wanted))
    return str(run.info.run_id)


def metrics_of(values: dict[str, float], step: int) -> "list[Metric]":
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    return [Metric(key, float(value), now_ms, step) for key, value in values.items()]


class StageRun:
    """A child run. Safe to use from several threads; while MLflow is away everything waits in memory.

    ``run_id`` is None until MLflow has been reached once.
    """

    def __init__(
        self, config: TrackingConfig, name: str, tags: dict[str, str], params: dict[str, Any], run_id: str | None = None
    ) -> None:
        self._config, self._name, self._tags, self._params = config, name, tags, params
        self._lock = threading.RLock()
        self._waiting: list[Metric] = []
        self._pause_s, self._not_before = FIRST_PAUSE_S, 0.0
        self.run_id = run_id or survive("open a run", self._create)

    def _create(self) -> str:
        return create_run(self._config, self._name, self._tags, self._params)

    @property
    def client(self) -> "MlflowClient":
        return client_of(self._config)[0]

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Deliver metrics now, or later when MLflow is away."""
        self.add(metrics_of(metrics, step))
        with self._lock:
            if time.monotonic() >= self._not_before:
                self.deliver()

    def add(self, metrics: "list[Metric]") -> None:
        """Let metrics wait for the next delivery."""
        with self._lock:
            self._waiting += metrics

    def deliver(self) -> bool:
        """Send what waits, in batches that are dropped only once accepted; False when something still waits."""
        with self._lock:
            try:
                run_id = self.run_id = self.run_id or self._create()
                while self._waiting:
                    self._send(run_id, self._waiting[:BATCH])
                    del self._waiting[:BATCH]
                self._pause_s = FIRST_PAUSE_S
            except Exception as error:  # noqa: BLE001 - tracking must never stop training
                log.warning("tracking: %s; %d metrics wait", type(error).__name__, len(self._waiting))
                self._not_before = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
                return False
            return True

    def _send(self, run_id: str, batch: "list[Metric]") -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.log_batch(run_id, metrics=batch)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(batch) == 1:
                log.error("tracking: MLflow refuses the metric %r, dropped: %s", batch[0].key, error)
                return
            for metric in batch:
                self._send(run_id, [metric])

    def log_file(self, path: Path) -> None:
        """Keep a small file (a curve, a report) with the run."""
        if self.deliver():
            survive(f"log {path}", lambda: self.client.log_artifact(self.run_id, str(path)))

    def log_dataset(self, name: str, digest: str, source: str, profile: str) -> None:
        """Name a dataset that the run made or used, with a few numbers of it as JSON."""
        if self.deliver():
            survive(f"log the dataset {name}", lambda: self._log_dataset(str(self.run_id), name, digest, source, profile))

    def _log_dataset(self, run_id: str, name: str, digest: str, source: str, profile: str) -> None:
        from mlflow.entities import Dataset, DatasetInput

        place = json.dumps({"uri": source})
        found = Dataset(name=name, digest=digest[:36], source_type="artifact", source=place, profile=profile)
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset=found)])

    def finish(self, status: str) -> None:
        """Flush, trying a few times, and end the run; one that is not whole is owed."""
        for attempt in range(FLUSH_TRIES):
            if self.end(status):
                return
            if attempt + 1 < FLUSH_TRIES:
                time.sleep(FIRST_PAUSE_S)
        log.warning("tracking: run %s: %d undelivered metrics are kept for the next start", self._name, len(self._waiting))
        waiting = [(metric.key, metric.value, metric.timestamp, metric.step) for metric in self._waiting]
        place = tracking_uri(self._config), self._config.experiment
        params = {key: str(value) for key, value in self._params.items()}
        survive(
            "keep what MLflow missed", lambda: owe(Debt(*place, self.run_id, self._name, self._tags, params, waiting, status))
        )

    def end(self, status: str) -> bool:
        if not self.deliver() or self.run_id is None:
            return False
        with suppress(Exception):
            self.client.set_terminated(self.run_id, status=status)
            return True
        return False


@contextmanager
def stage_run(
    config: TrackingConfig, parent_run_id: str | None, stage: str, name: str, params: dict[str, Any]
) -> Iterator[StageRun]:
    """A child run of the pipeline (or a run by itself), ended as FINISHED; FAILED when the body raises, KILLED when stopped."""
    tags = {"bard.kind": "stage", "bard.stage": stage}
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    run = StageRun(config, name, tags, params)
    try:
        yield run
    except BaseException as error:
        run.finish("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise
    run.finish("FINISHED")
