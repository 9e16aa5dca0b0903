"""lmms-eval's tasks and scores: a benchmark's task with the prompt it names, and one call that scores a loaded model on it."""

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.tasks import TaskManager, get_task_dict

from bard_core.evaluation.lmms_plugin import BardChat
from bard_core.evaluation.suites import Benchmark, SuiteError

FACTS = ("results", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples", "task_hashes")


@dataclass(frozen=True)
class Scores:
    """What a benchmark gave.

    Attributes:
        metrics: the task's aggregated scores by name, all that are numbers, as lmms-eval's result file has them.
        records: one a sample, in the task's order: id, doc_id, the answer's fields, reference, score (0 to 1, None where the
            task gives none for a single sample), and the task's own numbers.
        fingerprint: hash of all prompts and references.
        task_version: lmms-eval's.
        prompt_text: the prompt variant's words; None where the task has one prompt only.
    """

    metrics: dict[str, float]
    records: list[dict[str, Any]]
    fingerprint: str
    task_version: str
    prompt_text: dict[str, Any] | None


def load_task(benchmark: Benchmark, task_folder: Path | None) -> Any:
    """The benchmark's lmms-eval task, with the prompt variant that the benchmark names.

    Raises:
        SuiteError: lmms-eval has no such task, or the variant is not one of the task's.
    """
    manager = TaskManager(
        verbosity="ERROR",
        include_path=None if task_folder is None else [str(task_folder)],
        include_defaults=task_folder is None,
        model_name=benchmark.prompt,
    )
    if benchmark.task not in manager.all_tasks:
        raise SuiteError(f"benchmark {benchmark.name!r}: lmms-eval knows no task {benchmark.task!r}")
    (task,) = get_task_dict([benchmark.task], manager, "chat").values()
    if isinstance(task, dict):
        raise SuiteError(f"benchmark {benchmark.name!r}: {benchmark.task!r} is a group; name its tasks one by one")
    check_prompt(benchmark, task.config.lmms_eval_specific_kwargs)
    return task


def check_prompt(benchmark: Benchmark, variants: dict[str, Any] | None) -> None:
    """lmms-eval silently takes ``default`` for a name it does not know; here the name must be one of the task's.

    Raises:
        SuiteError: it is not.
    """
    known = sorted(key for key, value in (variants or {}).items() if isinstance(value, dict))
    if known and benchmark.prompt not in known:
        raise SuiteError(f"benchmark {benchmark.name!r}: prompt {benchmark.prompt!r} is not one of {', '.join(known)}")
    if not known and benchmark.prompt is not None:
        raise SuiteError(f"benchmark {benchmark.name!r}: the task has one prompt only; write prompt: null")


def score(chat: BardChat, benchmark: Benchmark, task: Any, results_folder: Path) -> Scores:
    """Run a loaded task through lmms-eval, whose own result files go to ``results_folder``.

    Raises:
        RuntimeError: lmms-eval gave no number for a metric of the benchmark, or every sample crashed.
    """
    chat.follow(benchmark)
    found = simple_evaluate(
        model=chat,
        tasks=[task],
        task_manager=TaskManager(verbosity="ERROR", include_defaults=False),  # theirs would read all 1,600 task files first
        limit=benchmark.max_samples,
        bootstrap_iters=0,
        verbosity="ERROR",
        log_samples=True,
        cli_args=argparse.Namespace(output_path=str(results_folder), process_with_media=True),
    )
    records = _records(chat, benchmark, task, found["samples"][benchmark.task])
    pairs = [[record["prompt"], record["reference"]] for record in records]
    written = _write_results(found, benchmark, results_folder)
    return Scores(
        metrics=_metrics(benchmark, written["results"][benchmark.task]),
        records=records,
        fingerprint=hashlib.sha256(json.dumps(pairs).encode()).hexdigest(),
        task_version=str(written["versions"][benchmark.task]),
        prompt_text=(task.config.lmms_eval_specific_kwargs or {}).get(benchmark.prompt),
    )


def _records(chat: BardChat, benchmark: Benchmark, task: Any, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    records = []
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        doc_id = int(sample["doc_id"])
        numbers = {name: float(sample[name]) for name in task.aggregation() if isinstance(sample.get(name), int | float)}
        records.append(
            {
                "benchmark": benchmark.name,
                "id": str(sample["doc"].get("id", doc_id)),
                "doc_id": doc_id,
                **asdict(chat.answers[benchmark.task, doc_id]),
                "reference": str(sample["target"]),
                "score": sample_score(benchmark, task.aggregation(), sample),
                **numbers,
            }
        )
    return records


def sample_score(benchmark: Benchmark, aggregations: dict[str, Any], sample: dict[str, Any]) -> float | None:
    """One sample's share of a perfect score: its number, its ``score`` field, or what the aggregation makes of it alone."""
    for name, perfect in benchmark.metrics.items():
        value = sample.get(name)
        if isinstance(value, int | float):
            return float(value) / perfect
        if isinstance(value, dict) and isinstance(value.get("score"), int | float):
            return float(value["score"])
        if value is not None:
            try:
                return float(aggregations[name]([value])) / perfect
            except Exception:  # noqa: BLE001 - an aggregation of the whole only; single samples cannot be compared then
                return None
    return None


def _write_results(found: dict[str, Any], benchmark: Benchmark, folder: Path) -> dict[str, Any]:
    """Write lmms-eval's files by its own tracker and read its aggregated one back: what is reported is what stands there.

    Of its files the facts are kept, under names without a date: judging again gives the same bytes.
    """
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name_sanitized = benchmark.name
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples, datetime_str=found["date"])
    tracker.save_results_samples(task_name=benchmark.task, samples=samples[benchmark.task])
    place = folder / benchmark.name
    dated = place / f"{tracker.date_id}_results.json"
    if not dated.is_file():
        raise RuntimeError(f"lmms-eval wrote no result file for {benchmark.name}: see its log for 'Could not save'")
    written: dict[str, Any] = json.loads(dated.read_text(encoding="utf-8"))
    dated.write_text(json.dumps({name: written[name] for name in FACTS}, indent=2) + "\n", encoding="utf-8")
    for path in sorted(place.iterdir()):
        path.rename(place / path.name.replace(tracker.date_id, benchmark.name))
    return written


def _metrics(benchmark: Benchmark, results: dict[str, Any]) -> dict[str, float]:
    """Aggregated scores without lmms-eval's own errors; those of the benchmark must be numbers."""
    metrics: dict[str, float] = {}
    for key, value in results.items():
        name, separator, _ = key.partition(",")
        if not separator or name.endswith(("_stderr", "_stderr_clt", "_stderr_clustered")):
            continue
        if isinstance(value, int | float):
            metrics[name] = float(value)
        elif name in benchmark.metrics:
            raise RuntimeError(f"lmms-eval task {benchmark.task!r} gave {value!r} for {name}: see what its samples lack")
    if missing := benchmark.metrics.keys() - metrics.keys():
        raise RuntimeError(
            f"lmms-eval task {benchmark.task!r} has no metric {', '.join(sorted(missing))}; it has: {', '.join(sorted(metrics))}"
        )
    return metrics
