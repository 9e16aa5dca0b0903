"""The pipeline's parent run in MLflow: opened first, closed last with the table on the terminal."""

import json

from bard_core import tracking as mlflow_tracking
from bard_core.config.file import check_data, check_stages
from bard_core.config.sections import (
    DataConfig,
    EvaluationConfig,
    PBMConfig,
    SourceConfig,
    StorageConfig,
    SWDConfig,
    TrackingConfig,
)
from bard_core.evaluation.suites import suite_of
from bard_core.report.views import console_table
from bard_core.store import artifacts, storage
from tasks.settings import Report, stage_task


@stage_task("prepare", "control", ignored=())
def open_run(
    name: str,
    data: DataConfig,
    source: SourceConfig,
    pbm: PBMConfig,
    swd: SWDConfig,
    evaluation: EvaluationConfig,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
) -> str:
    """The parent run of exactly this configuration: made once, found again by every later start.

    The pipeline's first task, so it also refuses sections that do not fit each other, and a suite that is not there.
    """
    check_stages(pbm, swd, evaluation.decoding)
    check_data(data, pbm, swd)
    suite_of(evaluation)
    sections = {"data": data, "source": source, "pbm": pbm, "swd": swd, "evaluation": evaluation}
    params = {section: artifacts.digest(value)[:16] for section, value in sections.items()}
    return mlflow_tracking.open_pipeline(tracking, name, params)


@stage_task("evaluate", "control", cached=False, retries=0)
def close_run(report: Report, tracking: TrackingConfig, storage_config: StorageConfig, parent_run: str) -> str:
    """End the parent run and print the table, where the report is, and how to open MLflow."""
    folder = artifacts.fetch(report)
    body = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    best = {f"{row['model']}.{key}": row[key] for row in body["rows"] for key in ("accuracy", "tokens_per_forward", "speedup")}
    mlflow_tracking.close_pipeline(tracking, parent_run, best)
    lines = (
        "",
        console_table(body["rows"]),
        "",
        body["verdict"],
        f"Report: {storage.join(report.uri, 'report.html')}",
        _where_mlflow_is(mlflow_tracking.tracking_uri(tracking)),
    )
    print("\n".join(lines), flush=True)
    return report.markdown


def _where_mlflow_is(uri: str) -> str:
    """A server is there already; over a local store one is to be started."""
    if uri.startswith(("http://", "https://")):
        return f"MLflow: {uri}"
    return f"MLflow: make ui   (or: mlflow server --backend-store-uri {uri}), then http://127.0.0.1:5000"
