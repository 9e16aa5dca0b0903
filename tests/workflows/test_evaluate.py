"""Evaluation as Flyte runs it: a benchmark that fails leaves the others, and the result says that it is partial."""

from pathlib import Path
from typing import Any

import pytest

from bard_core import tracking
from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.evaluation import DecodingConfig, EvaluationConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.evaluation.benchmark import judge
from bard_core.evaluation.suites import suite_of
from bard_core.store import storage
from workflows.evaluate import evaluate

SUITE = """
description: one that runs and one that lmms-eval does not know
version: 1
include: [lab]
benchmarks:
  - {name: broken, task: no_such_task, metrics: {exact: 1.0}, prompt: null}
"""


@pytest.mark.slow
def test_a_failing_benchmark_leaves_the_others_and_the_result_partial(
    make_model: Any, lab_dataset: Any, bard_home: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "partial.yaml"
    suite.write_text(SUITE)
    config = EvaluationConfig(suite=str(suite), max_samples=2, speed_samples=2, decoding=DecodingConfig(max_new_tokens=4))
    source = make_model(tmp_path / "source", 1)
    place: dict[str, Any] = {"storage_config": StorageConfig(), "tracking": TrackingConfig(), "compute": ComputeConfig()}
    result = evaluate(model=source, source=source, dataset=lab_dataset, evaluation=config, parent_run="", **place)
    assert (result.missing, [score.name for score in result.benchmarks]) == (("broken",), ["lab"])
    assert not result.complete and result.num_samples == 2
    (version,) = tracking.versions(TrackingConfig())
    assert (version.model.key, version.source.key, version.dataset.key) == (source.key, source.key, lab_dataset.key)
    (logged,) = tracking.scored_models(TrackingConfig())
    assert logged.metrics["lab"] == result.accuracy


@pytest.mark.slow
def test_a_benchmark_spread_over_tasks_asks_each_sample_once_and_scores_as_one_process(
    make_model: Any, lab_dataset: Any, bard_home: Path, tmp_path: Path
) -> None:
    """Two shares of five samples: the artifact of the benchmark is that of one process, byte by byte."""
    config = EvaluationConfig(
        suite="lab", max_samples=5, speed_samples=1, batch_size=2, decoding=DecodingConfig(max_new_tokens=4)
    )
    model = make_model(tmp_path / "model", 1)
    place: dict[str, Any] = {"storage_config": StorageConfig(), "tracking": TrackingConfig(), "parent_run": ""}
    spread = ComputeConfig(judge_tasks=2)
    result = evaluate(model=model, source=model, dataset=lab_dataset, evaluation=config, compute=spread, **place)
    (benchmark,) = suite_of(config).benchmarks
    alone = judge(model, lab_dataset, benchmark, config, str(tmp_path / "alone"), str(tmp_path / "answers"), processes=1)
    assert result.benchmarks == (alone.score,)
    (manifest,) = (bard_home / "artifacts" / "benchmarks").glob("*/manifest.json")
    assert storage.sha256(str(manifest)) == storage.sha256(str(tmp_path / "alone" / "manifest.json"))
    parts = list((bard_home / "artifacts" / "answers").rglob("*.jsonl"))
    prompts = [line for path in parts for line in path.read_text().splitlines()]
    assert len(parts) == 2 and len(prompts) == len(set(prompts)) == 5
