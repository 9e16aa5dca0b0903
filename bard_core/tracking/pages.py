"""What people find in MLflow: a pipeline's run with its configuration, report and verdict, versions that explain themselves."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bard_core.config.sections.storage import TrackingConfig
from bard_core.store.refs import DatasetRef
from bard_core.tracking import runs
from bard_core.tracking.models import find_model
from bard_core.tracking.registry import Version
from bard_core.tracking.runs import StageRun

VERSION_TAG, VERDICT_TAG, NOTE = "bard.version", "bard.verdict", "mlflow.note.content"


def comparison_page(config: TrackingConfig) -> str:
    """What follows a server's address on the page that has the checkpoints and their scores side by side.

    The kind of workflow is in it because MLflow 3 otherwise opens the pages of generative AI, which have no models.
    """
    _, experiment = runs.client_of(config)
    return f"#/experiments/{experiment}/models?workflowType=machine_learning"


def show_pipeline(config: TrackingConfig, run_id: str, files: Sequence[Path], verdict: str, dataset: DatasetRef) -> None:
    """Give a pipeline's run its files, its verdict as description, and the dataset; survives an MLflow that is away."""

    def tell() -> None:
        client, _ = runs.client_of(config)
        for path in files:
            client.log_artifact(run_id, str(path))
        client.set_tag(run_id, VERDICT_TAG, verdict)
        client.set_tag(run_id, NOTE, verdict)

    runs.survive(f"show the pipeline {run_id}", tell)
    counts = f'{{"num_train": {dataset.num_train}, "num_eval": {dataset.num_eval}}}'
    StageRun(config, "", {}, {}, run_id).log_dataset("prepared", dataset.manifest_sha256, dataset.uri, counts)


def describe_versions(config: TrackingConfig, descriptions: Mapping[int, str], versions: Sequence[Version]) -> None:
    """Write the versions' descriptions, and on each LoggedModel which version it is."""

    def tell(version: Version) -> Any:
        client, _ = runs.client_of(config)
        client.update_model_version(config.registered_model, str(version.number), description=descriptions[version.number])
        if (model := find_model(config, version.model.key)) is not None:
            link = f"models:/{config.registered_model}/{version.number}"
            client.set_logged_model_tags(model.model_id, {VERSION_TAG: link})

    for version in versions:
        if version.number in descriptions:
            runs.survive(f"describe version {version.number}", partial(tell, version))
