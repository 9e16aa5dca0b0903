"""evaluate: judge one model by one suite, a benchmark a task; then bring the scores together, time it and register it."""

import time
from contextlib import nullcontext

from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.evaluation import benchmark as judging
from bard_core.evaluation.benchmark import Share
from bard_core.evaluation.evaluate import evaluate as judge
from bard_core.evaluation.evaluate import protocol_digest
from bard_core.evaluation.suites import Benchmark, suite_of
from bard_core.store import claims, places, storage, times
from bard_core.store.claims import Claim
from bard_core.store.refs import BenchmarkRef
from bard_core.tracking import log_evaluation, register, stage_run
from tasks.settings import Dataset, Evaluation, Model, stage_task


def benchmarks_of(evaluation: EvaluationConfig) -> list[Benchmark]:
    """The configured suite's benchmarks, to be mapped over."""
    return list(suite_of(evaluation).benchmarks)


def shares_of(evaluation: EvaluationConfig, of: int) -> list[Share]:
    """Every benchmark's samples in ``of`` shares, to be mapped over."""
    return [Share(benchmark=b, index=index, of=of) for b in benchmarks_of(evaluation) for index in range(of)]


@stage_task("evaluate", "evaluate")
def answer_share(
    share: Share,
    model: Model,
    dataset: Dataset,
    evaluation: EvaluationConfig,
    storage_config: StorageConfig,
    claim: Claim | None,
) -> Share:
    """A share of a benchmark's answers, left in storage for its judge. Not cached: what was answered is found there."""
    uri, answers = _places(share.benchmark, model, dataset, evaluation, storage_config)
    with claims.kept(claim):
        judging.answer(model, dataset, share, evaluation, uri, answers)
    return share


@stage_task("evaluate", "evaluate")
def judge_benchmark(
    benchmark: Benchmark,
    answered: list[Share | None],
    model: Model,
    dataset: Dataset,
    evaluation: EvaluationConfig,
    storage_config: StorageConfig,
    claim: Claim | None,
) -> BenchmarkRef:
    """One benchmark's score. Not in Flyte's cache, which would keep a failed one too; what was judged is found in storage.

    ``answered``: the shares that are there before; what none of them answered is answered here.
    """
    uri, answers = _places(benchmark, model, dataset, evaluation, storage_config)
    alone = times.measured(f"judge {model.name} {benchmark.name}", uri) if not answered else nullcontext()
    with claims.kept(claim), claims.exclusive(f"{uri}.claim"), alone:
        return judging.judge(model, dataset, benchmark, evaluation, uri, answers)


def _places(
    benchmark: Benchmark, model: Model, dataset: Dataset, evaluation: EvaluationConfig, storage_config: StorageConfig
) -> tuple[str, str]:
    """(uri of the benchmark's score, folder of all answer stores)."""
    key = judging.judged_key(model, dataset, benchmark, evaluation)
    uri = places.benchmark_uri(storage_config, model, benchmark.name, key)
    return uri, storage.join(storage.root_uri(storage_config), "artifacts", "answers")


@stage_task("evaluate", "evaluate", code="evaluate")
def finish_evaluation(
    benchmarks: list[BenchmarkRef | None],
    model: Model,
    source: Model,
    dataset: Dataset,
    evaluation: EvaluationConfig,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    parent_run: str,
    claim: Claim | None,
) -> Evaluation:
    """Accuracy, tokens per forward and speed of ``model``; ``source`` is the baseline of speed. Then the registry knows it."""
    judged = [ref for ref in benchmarks if ref is not None]
    uri = places.evaluation_uri(storage_config, model, source, dataset, evaluation, judged)
    started = time.perf_counter()
    params = {"suite": evaluation.suite, **evaluation.decoding.model_dump()}
    with (
        claims.kept(claim),
        times.measured(f"evaluate {model.name}", uri),
        claims.exclusive(f"{uri}.claim"),  # of two pipelines at once, one registers the model and the other finds it registered
        stage_run(tracking, parent_run or None, "evaluate", f"evaluate {model.name}", params) as run,
    ):
        result = judge(model, source, dataset, evaluation, uri, judged)
        log_evaluation(tracking, run, result, protocol_digest(evaluation, dataset))
        register(tracking, model, source, dataset)
    accuracy, error = 100 * result.accuracy, 100 * result.accuracy_stderr
    numbers = f"{accuracy:.1f} ± {error:.1f} %, TPF {result.tokens_per_forward:.2f}, {result.tokens_per_s:.0f} tok/s"
    numbers += f", {result.speedup:.2f}x AR"
    partial = f"; NO SCORE for {', '.join(result.missing)}" if result.missing else ""
    print(f"evaluated {model.name}: {numbers} ({time.perf_counter() - started:.0f} s){partial}", flush=True)
    return result
