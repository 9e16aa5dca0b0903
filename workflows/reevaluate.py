"""Judge registered checkpoints that lack a score under the suite as it is now, and let the gate move the aliases.

    pyflyte run workflows/reevaluate.py reevaluate --inputs-file configs/reevaluate/lab.yaml [--version N]

Starting it twice at once judges once; starting it again judges nothing.
"""

from flytekit import workflow

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.evaluation import EvaluationConfig, GateConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.promotion.reevaluate import Pending
from bard_core.store.refs import EvalResult
from tasks.reevaluate import conclude, plan
from tasks.settings import stage_dynamic
from workflows.evaluate import evaluate


@stage_dynamic("report")
def judge_pending(
    pending: list[Pending],
    evaluation: EvaluationConfig,
    compute: ComputeConfig,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
) -> list[EvalResult]:
    """One evaluation a claimed version."""
    return [
        evaluate(
            model=item.model,
            source=item.source,
            dataset=item.dataset,
            evaluation=evaluation,
            storage_config=storage_config,
            tracking=tracking,
            compute=compute,
            parent_run="",
            claim=item.claim,
        )
        for item in pending
    ]


@workflow
def reevaluate(
    evaluation: EvaluationConfig,
    gate: GateConfig = GateConfig(),
    version: int = 0,
    compute: ComputeConfig = ComputeConfig(),
    storage_config: StorageConfig = StorageConfig(),
    tracking: TrackingConfig = TrackingConfig(),
) -> str:
    """``version`` 0: everything registered. Returns the comparison as Markdown."""
    pending = plan(evaluation=evaluation, gate=gate, version=version, storage_config=storage_config, tracking=tracking)
    results = judge_pending(
        pending=pending, evaluation=evaluation, compute=compute, storage_config=storage_config, tracking=tracking
    )
    return conclude(
        pending=pending,
        results=results,
        evaluation=evaluation,
        gate=gate,
        version=version,
        storage_config=storage_config,
        tracking=tracking,
    )
