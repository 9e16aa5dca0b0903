"""reevaluate: what to judge, and what came of it. Neither is cached: both look at the registry as it is now."""

import tempfile
from pathlib import Path

from bard_core.config.sections.evaluation import EvaluationConfig, GateConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.promotion import comparison
from bard_core.promotion import reevaluate as rejudging
from bard_core.promotion.reevaluate import Pending
from bard_core.promotion.request import Request
from bard_core.report import leaderboard
from bard_core.store import claims
from bard_core.store.refs import EvalResult
from bard_core.tracking import stage_run
from tasks.settings import stage_task


@stage_task("report", "control", retries=0)
def plan(
    evaluation: EvaluationConfig, gate: GateConfig, version: int, storage_config: StorageConfig, tracking: TrackingConfig
) -> list[Pending]:
    """Claim the versions that lack a score."""
    request = Request(evaluation=evaluation, gate=gate, version=version, storage_config=storage_config, tracking=tracking)
    pending = rejudging.plan(request)
    print(f"to judge: {', '.join(f'version {p.number} ({p.model.name})' for p in pending) or 'nothing'}", flush=True)
    return pending


@stage_task("report", "control")
def conclude(
    pending: list[Pending],
    results: list[EvalResult],
    evaluation: EvaluationConfig,
    gate: GateConfig,
    version: int,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
) -> str:
    """Gate, aliases, and the comparison with its leaderboard in MLflow; returns the comparison as Markdown."""
    request = Request(evaluation=evaluation, gate=gate, version=version, storage_config=storage_config, tracking=tracking)
    for item in pending:
        claims.release(item.claim)
    said = rejudging.conclude(request)
    lines = comparison.comparison(request)
    text = comparison.markdown(lines, comparison.left_out(request))
    if said or results:
        with tempfile.TemporaryDirectory() as scratch, stage_run(tracking, None, "reevaluate", "reevaluate", {}) as run:
            for name, body in (("comparison.md", text), ("comparison.json", comparison.facts(lines))):
                (Path(scratch) / name).write_text(body, encoding="utf-8")
                run.log_file(Path(scratch) / name)
            for path in leaderboard.write(tracking, Path(scratch)):
                run.log_file(path)
    for number, words in said.items():
        print(f"version {number} {words}", flush=True)
    return text
