"""MLflow, and the only place that imports it: runs, one LoggedModel a checkpoint with its scores, and the registry.

Weights stay where they are; MLflow holds their uri and digest.
"""

from bard_core.tracking.completion import complete
from bard_core.tracking.models import (
    LoggedScores,
    evaluation_of,
    headline,
    log_comparison,
    log_evaluation,
    log_model,
    provenance,
    scored_models,
)
from bard_core.tracking.pages import comparison_page, describe_versions, show_pipeline
from bard_core.tracking.pipelines import abandon_pipeline, close_pipeline, open_pipeline, settle
from bard_core.tracking.registry import Version, register, set_alias, tag_version, versions
from bard_core.tracking.runs import StageRun, TrackingError, client_of, stage_run, tracking_uri

__all__ = [
    "LoggedScores",
    "StageRun",
    "TrackingError",
    "Version",
    "abandon_pipeline",
    "client_of",
    "close_pipeline",
    "comparison_page",
    "complete",
    "describe_versions",
    "evaluation_of",
    "headline",
    "log_comparison",
    "log_evaluation",
    "log_model",
    "open_pipeline",
    "provenance",
    "register",
    "scored_models",
    "set_alias",
    "settle",
    "show_pipeline",
    "stage_run",
    "tag_version",
    "tracking_uri",
    "versions",
]
