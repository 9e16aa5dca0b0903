"""The end of a pipeline: whatever MLflow missed, or lost, of its results is put there again."""

from collections.abc import Sequence

from bard_core.config.sections.storage import TrackingConfig
from bard_core.store.refs import DatasetRef, EvalResult
from bard_core.tracking.models import evaluation_of, find_model, headline, log_evaluation, log_model
from bard_core.tracking.registry import numbers, register
from bard_core.tracking.runs import TrackingError, stage_run, tracking_uri


def complete(
    config: TrackingConfig, parent_run: str, results: Sequence[EvalResult], dataset: DatasetRef, protocol: str
) -> list[str]:
    """See that every result has its LoggedModel, scores and version; returns what was lacking and is there now, in words.

    Raises:
        TrackingError: something cannot be put there.
    """
    lacking = {result.key: found for result in results if (found := missing(config, result, protocol))}
    source = next(result.model for result in results if result.model.stage == "source")
    for result in results:
        if result.key not in lacking:
            continue
        with stage_run(config, parent_run or None, "evaluate", f"evaluate {result.model.name}", {"suite": result.suite}) as run:
            log_model(config, run.run_id, result.model)
            log_evaluation(config, run, result, protocol)
            register(config, result.model, source, dataset)
        if still := missing(config, result, protocol):
            raise TrackingError(
                f"MLflow at {tracking_uri(config)} still lacks {', '.join(still)} of {result.model.name} after they were sent; "
                "see its log, then run the same command again"
            )
    return [f"{result.model.name}: {', '.join(lacking[result.key])}" for result in results if result.key in lacking]


def missing(config: TrackingConfig, result: EvalResult, protocol: str) -> list[str]:
    """What of a result MLflow lacks: its LoggedModel, its scores, its version."""
    logged = find_model(config, result.model.key)
    if logged is None:
        return ["the model", "its scores", "its version"]
    lacking = []
    scores = {(metric.key, metric.value) for metric in logged.metrics or ()}
    if headline(result).items() - scores or evaluation_of(config, result.model.key, protocol) != (result.uri, result.key):
        lacking.append("its scores")
    if not numbers(config, result.model.key):
        lacking.append("its version")
    return lacking
