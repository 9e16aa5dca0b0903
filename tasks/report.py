"""report: all results in one table, one picture, one page."""

import tempfile
from pathlib import Path

from flytekit import Deck

from bard_core.config.file import shown
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.evaluation import EvaluationConfig, GateConfig
from bard_core.config.sections.pbm import PBMConfig
from bard_core.config.sections.source import SourceConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.evaluation import tradeoff
from bard_core.report import build as reporting
from bard_core.report import leaderboard
from bard_core.report.build import Context
from bard_core.store import artifacts, places, times
from bard_core.store.refs import EvalResult
from bard_core.tracking import log_comparison, provenance, settle, stage_run
from tasks.settings import Dataset, Report, stage_task


@stage_task("report", "report", code="report", enable_deck=True)
def report(
    name: str,
    results: list[EvalResult],
    dataset: Dataset,
    data: DataConfig,
    source: SourceConfig,
    pbm: PBMConfig,
    swd: SWDConfig,
    evaluation: EvaluationConfig,
    gate: GateConfig,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    parent_run: str,
) -> Report:
    """Write report.json, report.md and report.html; the page is also the task's Flyte Deck."""
    sections = {"data": data, "source": source, "pbm": pbm, "swd": swd, "evaluation": evaluation, "gate": gate}
    configuration = {"name": name, **shown(sections)}
    uri = places.report_uri(storage_config, name, dataset, results, configuration)
    settle(tracking)
    with times.measured("report", uri), stage_run(tracking, parent_run, "report", "report", {}) as run:
        ref = reporting.build(results, dataset, uri, f"Bard: {name}", Context(configuration, gate, provenance()))
        folder = artifacts.fetch(ref)
        for path in sorted(folder.glob("report.*")):
            run.log_file(path)
        for result, numbers in tradeoff.headline(results):
            log_comparison(tracking, run, result, numbers)
        with tempfile.TemporaryDirectory() as scratch:
            for path in leaderboard.write(tracking, Path(scratch)):
                run.log_file(path)
    Deck("Bard", (folder / "report.html").read_text(encoding="utf-8"))
    return ref
