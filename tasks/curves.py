"""curves: what several trainings of the same step learned, in one picture."""

from flytekit import Deck

from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.report import build as reporting
from bard_core.store import artifacts, places
from bard_core.store.refs import CheckpointRef
from bard_core.tracking import stage_run
from tasks.settings import Report, stage_task


@stage_task("report", "report", code="report", enable_deck=True)
def curves(
    name: str,
    labels: list[str],
    checkpoints: list[CheckpointRef],
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    parent_run: str,
) -> Report:
    """Write report.json, report.md and curves.png of the checkpoints' training, ``labels`` naming them in order."""
    uri = places.artifact_uri(storage_config, "report", name, "report", labels, [checkpoint.key for checkpoint in checkpoints])
    with stage_run(tracking, parent_run, "report", "curves", {}) as run:
        ref = reporting.build_curves(dict(zip(labels, checkpoints, strict=True)), uri, f"Bard: {name}")
        folder = artifacts.fetch(ref)
        for path in sorted(folder.iterdir()):
            run.log_file(path)
    Deck("Bard", (folder / "report.md").read_text(encoding="utf-8"))
    return ref
