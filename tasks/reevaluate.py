"""reevaluate: what to judge, and what came of it. Neither is cached: both look at the registry as it is now."""

import tempfile
from pathlib import Path

from flytekit import task

from bard_core import claims, leaderboard, reevaluation
from bard_core.artifacts import EvalResult
from bard_core.config import EvaluationConfig, GateConfig, StorageConfig, TrackingConfig
from bard_core.reevaluation import Pending, Request
from bard_core.tracking import stage_run
from tasks.settings import image


@task(container_image=image("evaluate"))
def plan(
    evaluation: EvaluationConfig, gate: GateConfig, version: int, storage_config: StorageConfig, tracking: TrackingConfig
) -> list[Pending]:
    """Claim the versions that lack a score."""
    request = Request(evaluation=evaluation, gate=gate, version=version, storage_config=storage_config, tracking=tracking)
    pending = reevaluation.plan(request)
    print(f"to judge: {', '.join(f'version {p.number} ({p.model.name})' for p in pending) or 'nothing'}", flush=True)
    return pending


@task(container_image=image("evaluate"), retries=2)
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
    said = reevaluation.conclude(request)
    lines = reevaluation.comparison(request)
    text = reevaluation.markdown(lines)
    if said or results:
        with tempfile.TemporaryDirectory() as scratch, stage_run(tracking, None, "reevaluate", "reevaluate", {}) as run:
            for name, body in (("comparison.md", text), ("comparison.json", reevaluation.facts(lines))):
                (Path(scratch) / name).write_text(body, encoding="utf-8")
                run.log_file(Path(scratch) / name)
            for path in leaderboard.write(tracking, Path(scratch)):
                run.log_file(path)
    for number, words in said.items():
        print(f"version {number} {words}", flush=True)
    return text
