"""The pipeline's parent run in MLflow: opened first, closed last with the table on the terminal."""

import atexit
import json
import os

from bard_core import preflight
from bard_core import tracking as mlflow_tracking
from bard_core.config.file import PipelineConfig, check_data, check_stages
from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.evaluation import EvaluationConfig, GateConfig
from bard_core.config.sections.pbm import PBMConfig
from bard_core.config.sections.source import SourceConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.evaluation import tradeoff
from bard_core.evaluation.evaluate import protocol_digest
from bard_core.evaluation.suites import suite_of
from bard_core.promotion import reevaluate as rejudging
from bard_core.promotion.request import Request
from bard_core.report.verdict import sentence
from bard_core.report.views import console_table
from bard_core.store import artifacts, storage, workshop
from bard_core.store.refs import EvalResult
from tasks import progress, stopping
from tasks.settings import Dataset, Report, runs_here, stage_task


@stage_task("prepare", "control", retries=0)
def open_run(
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
) -> str:
    """The parent run of exactly this configuration: made once, found again by every later start. Not cached: its id is MLflow's.

    The pipeline's first task at every start, so it also refuses what cannot work, and sweeps what a kill left behind.
    """
    check_stages(pbm, swd, evaluation.decoding)
    check_data(data, pbm, swd)
    suite_of(evaluation)
    here = runs_here() and not os.environ.get("RAY_ADDRESS")
    preflight.check(data, source, pbm, swd, compute, storage_config, on_this_machine=here)
    workshop.sweep_scratch()
    sections = {"data": data, "source": source, "pbm": pbm, "swd": swd, "evaluation": evaluation}
    run_id = mlflow_tracking.open_pipeline(tracking, name, sections)
    if runs_here():
        atexit.register(_abandon, tracking, run_id)
        progress.expect(
            PipelineConfig(name=name, **sections, gate=gate, compute=compute, storage_config=storage_config, tracking=tracking)
        )
    return run_id


def _abandon(tracking: TrackingConfig, run_id: str) -> None:
    """What did not come to ``close_run`` was stopped or failed."""
    mlflow_tracking.abandon_pipeline(tracking, run_id, "KILLED" if stopping.asked() else "FAILED")


@stage_task("report", "control", retries=0)
def close_run(
    report: Report,
    results: list[EvalResult],
    dataset: Dataset,
    evaluation: EvaluationConfig,
    gate: GateConfig,
    tracking: TrackingConfig,
    storage_config: StorageConfig,
    parent_run: str,
) -> str:
    """See that MLflow has every result; print the table and where things are; gate the models and name the champion."""
    if repaired := mlflow_tracking.complete(tracking, parent_run, results, dataset, protocol_digest(evaluation, dataset)):
        with mlflow_tracking.stage_run(tracking, parent_run, "report", "comparison", {}) as run:
            for result, numbers in tradeoff.headline(results):
                mlflow_tracking.log_comparison(tracking, run, result, numbers)
        print("MLflow lacked, and has again: " + "; ".join(repaired), flush=True)
    folder = artifacts.fetch(report)
    body = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    best = {f"{row['model']}.{key}": row[key] for row in body["rows"] for key in ("accuracy", "tokens_per_forward", "speedup")}
    mlflow_tracking.close_pipeline(tracking, parent_run, best)
    shown = [folder / name for name in ("config.yaml", "report.html", "report.md", "report.json", "frontier.png")]
    mlflow_tracking.show_pipeline(tracking, parent_run, shown, sentence(body["verdict"]), dataset)
    print("\n".join(("", console_table(body["rows"]), "", sentence(body["verdict"]))), flush=True)
    request = Request(evaluation=evaluation, gate=gate, storage_config=storage_config, tracking=tracking)
    models = {row["model_sha256"] for row in body["rows"]}
    rejudging.conclude(request, models, parent_run)
    print(f"\n{rejudging.standing(request, models)}\n", flush=True)
    print(f"Report: {storage.join(report.uri, 'report.html')}", flush=True)
    print(_where_mlflow_is(mlflow_tracking.tracking_uri(tracking), mlflow_tracking.comparison_page(tracking)), flush=True)
    return report.markdown


def _where_mlflow_is(uri: str, page: str) -> str:
    """The page that has the checkpoints side by side: of a server, or of the one that is to be started over a local store."""
    if uri.startswith(("http://", "https://")):
        return f"Compare the checkpoints: {uri.rstrip('/')}/{page}"
    return f"Compare the checkpoints: make ui, then http://127.0.0.1:5000/{page}"
