"""Judge a model: the suite's benchmarks as mapped tasks, so that one that fails leaves the others and a partial result.

``compute.judge_tasks`` above 1 spreads each benchmark's samples over that many tasks first.
"""

from functools import partial
from typing import Any

from flytekit import map_task

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.store.claims import Claim
from tasks.evaluate import answer_share, benchmarks_of, finish_evaluation, judge_benchmark, shares_of
from tasks.resources import pod
from tasks.settings import Dataset, Evaluation, Model, stage_dynamic
from tasks.within import within


@stage_dynamic("report")
def evaluate(
    model: Model,
    source: Model,
    dataset: Dataset,
    evaluation: EvaluationConfig,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    compute: ComputeConfig,
    parent_run: str,
    claim: Claim | None = None,
) -> Evaluation:
    """At least one benchmark must give a score; the rest may be missing (the tiny ratio stands for one)."""
    place = {"evaluation": evaluation, "storage_config": storage_config, "claim": claim}
    in_pods = pod("evaluate", compute)
    answered: list[Any] = []
    if compute.judge_tasks > 1:
        answer = map_task(partial(answer_share, model=model, dataset=dataset, **place), min_success_ratio=1e-9)
        answered = within(in_pods, answer)(share=shares_of(evaluation, compute.judge_tasks))
    judged = map_task(partial(judge_benchmark, answered=answered, model=model, dataset=dataset, **place), min_success_ratio=1e-9)
    return within(in_pods, finish_evaluation)(
        benchmarks=within(in_pods, judged)(benchmark=benchmarks_of(evaluation)),
        model=model,
        source=source,
        dataset=dataset,
        tracking=tracking,
        parent_run=parent_run,
        **place,
    )
