"""A pipeline's own run, the parent of its stages'; and what is settled when a pipeline starts.

Settled are the metrics that the server missed, and the runs that a kill left RUNNING.
"""

import logging
from collections.abc import Mapping
from typing import Any

from bard_core.config.sections.storage import TrackingConfig
from bard_core.store import artifacts, claims
from bard_core.tracking import runs
from bard_core.tracking.debts import Debt, locked, owed
from bard_core.tracking.runs import (
    PROCESS_TAG,
    StageRun,
    TrackingError,
    create_run,
    metrics_of,
    survive,
    tracking_uri,
)

log = logging.getLogger(__name__)
PIPELINE_TAG = "bard.pipeline"


def open_pipeline(config: TrackingConfig, name: str, sections: Mapping[str, Any]) -> str:
    """The parent run of a pipeline of this name and configuration, made once and opened again by later starts; its id.

    Its parameters are the first 16 digits of the sections' digests.
    What earlier starts left behind is settled first: metrics that the server missed, and runs whose process is dead.

    Raises:
        TrackingError: MLflow cannot be reached. Nothing has run yet, so this is the moment to say it.
    """
    params = {section: artifacts.digest(value)[:16] for section, value in sections.items()}
    try:
        digest = artifacts.digest([name, params])
        client, experiment = runs.client_of(config)
        settle(config)
        end_dead_runs(config)
        mine = f"tags.`{PIPELINE_TAG}` = '{digest}'"
        found = client.search_runs([experiment], mine, max_results=1, order_by=["attributes.start_time DESC"])
        if not found:
            return create_run(config, name, {"bard.kind": "pipeline", PIPELINE_TAG: digest}, params)
        run_id = str(found[0].info.run_id)
        client.set_tag(run_id, PROCESS_TAG, claims.this_process())
        client.update_run(run_id, status="RUNNING")
        return run_id
    except Exception as error:
        raise TrackingError(
            f"no MLflow at {tracking_uri(config)} ({type(error).__name__}: {error}); start it, "
            "or leave tracking.tracking_uri and MLFLOW_TRACKING_URI empty for sqlite in the home folder"
        ) from error


def close_pipeline(config: TrackingConfig, run_id: str, metrics: dict[str, float]) -> None:
    """Write the pipeline's own numbers and end its run; calling it again changes nothing but the numbers."""

    def close() -> None:
        client, _ = runs.client_of(config)
        client.log_batch(run_id, metrics=metrics_of(metrics, 0))
        client.set_terminated(run_id, status="FINISHED")

    survive(f"close the pipeline run {run_id}", close)


def abandon_pipeline(config: TrackingConfig, run_id: str, status: str) -> None:
    """End the run of a pipeline that did not come to ``close_pipeline``; nothing happens to one that did."""

    def end() -> None:
        client, _ = runs.client_of(config)
        info = client.get_run(run_id)
        if info.info.status == "RUNNING" and info.data.tags.get(PROCESS_TAG) == claims.this_process():
            client.set_terminated(run_id, status=status)

    survive(f"end the pipeline run {run_id}", end)


def settle(config: TrackingConfig) -> int:
    """Pay the debts to this server; returns how many are left, those to other servers not counted."""
    left = 0
    with locked("undelivered"):
        for path, debt in owed().items():
            if debt.tracking_uri != tracking_uri(config):
                continue
            if _paid(debt):
                path.unlink()
                log.warning("tracking: run %s got the %d metrics it had missed", debt.name, len(debt.metrics))
            else:
                left += 1
    return left


def _paid(debt: Debt) -> bool:
    from mlflow.entities import Metric

    config = TrackingConfig(tracking_uri=debt.tracking_uri, experiment=debt.experiment)
    run = StageRun(config, debt.name, debt.tags, debt.params, run_id=debt.run_id)
    run.add([Metric(key, value, at_ms, step) for key, value, at_ms, step in debt.metrics])
    return run.end(debt.status)


def end_dead_runs(config: TrackingConfig) -> list[str]:
    """End the runs that a kill left RUNNING: their process was of this machine and is no more. Returns their ids."""
    client, experiment = runs.client_of(config)
    unpaid = {debt.run_id for debt in owed().values()}
    ended = []
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=1000):
        process = run.data.tags.get(PROCESS_TAG, "")
        if claims.process_is_dead(process) and run.info.run_id not in unpaid:
            client.set_terminated(run.info.run_id, status="KILLED")
            ended.append(str(run.info.run_id))
    return ended
