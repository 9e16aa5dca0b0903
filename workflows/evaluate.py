"""Judge a model: the suite's benchmarks as mapped tasks, so that one that fails leaves the others and a partial result."""

from functools import partial

from flytekit import map_task

from bard_core.config.sections import ComputeConfig, EvaluationConfig, StorageConfig, TrackingConfig
from bard_core.store.claims import Claim
from tasks.evaluate import benchmarks_of, finish_evaluation, judge_benchmark
from tasks.resources import pod
from tasks.settings import Dataset, Evaluation, Model, stage_dynamic


@stage_dynamic("evaluate")
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
    judged = map_task(partial(judge_benchmark, model=model, dataset=dataset, **place), min_success_ratio=1e-9)
    in_pods = pod("evaluate", compute)
    return finish_evaluation(
        benchmarks=judged(benchmark=benchmarks_of(evaluation)).with_overrides(**in_pods),
        model=model,
        source=source,
        dataset=dataset,
        tracking=tracking,
        parent_run=parent_run,
        **place,
    ).with_overrides(**in_pods)
