"""What is left of a pipeline that failed: a report that names the error, and the parent run marked as failed."""

import tempfile
from pathlib import Path

from flytekit.types.error import FlyteError

from bard_core import tracking as mlflow_tracking
from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.evaluation import EvaluationConfig, GateConfig
from bard_core.config.sections.pbm import PBMConfig
from bard_core.config.sections.source import SourceConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.store import storage
from tasks import errors
from tasks.settings import stage_task

errors.read_whole()

FINISHED = ("prepare", "models", "benchmarks", "evaluate")  # folders of artifacts
AGAIN = "Start the same run again: it takes what is finished from storage and goes on with what failed."


@stage_task("report", "control", retries=0)
def report_failure(
    name: str,
    data: DataConfig,
    source: SourceConfig,
    pbm: PBMConfig,
    swd: SWDConfig,
    evaluation: EvaluationConfig,
    gate: GateConfig,
    compute: ComputeConfig,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    err: FlyteError | None = None,
) -> None:
    """Flyte calls it, with all of the workflow's inputs, when a task has failed for good.

    Writes ``<root>/artifacts/failures/<name>.md`` and gives the same page to the pipeline's run in MLflow.
    """
    root = storage.root_uri(storage_config)
    said = err.message.strip() if err is not None else "Flyte gave no message; see the console"
    there = [f"- {folder}/{item}" for folder in FINISHED for item in _finished(root, folder)]
    lines = [f"# {name}: failed", "```", said, "```", AGAIN, "## What is finished", *(there or ["nothing yet"])]
    page = "\n\n".join(lines) + "\n"
    storage.write_bytes(storage.join(root, "artifacts", "failures", f"{name}.md"), page.encode())
    sections = {"data": data, "source": source, "pbm": pbm, "swd": swd, "evaluation": evaluation}
    parent_run = mlflow_tracking.open_pipeline(tracking, name, sections)
    with (
        tempfile.TemporaryDirectory() as scratch,
        mlflow_tracking.stage_run(tracking, parent_run, "report", "failure", {}) as run,
    ):
        path = Path(scratch) / "failure.md"
        path.write_text(page, encoding="utf-8")
        run.log_file(path)
    mlflow_tracking.abandon_pipeline(tracking, parent_run, "FAILED")


def _finished(root: str, folder: str) -> list[str]:
    """Names of the artifacts below ``<root>/artifacts/<folder>`` that are whole."""
    place = storage.join(root, "artifacts", folder)
    names = storage.list_files(place)
    return sorted(
        name.removesuffix("/manifest.json") for name in names if name.count("/") == 1 and name.endswith("/manifest.json")
    )
