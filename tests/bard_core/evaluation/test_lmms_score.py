"""Scores of lmms-eval that are no numbers, prompts that are not there, samples of any form."""

import pytest

from bard_core.evaluation.lmms_score import _metrics, check_prompt, sample_score
from bard_core.evaluation.suites import Benchmark, SuiteError, load_suite

LAB = load_suite("lab").benchmarks[0]


def test_a_metric_without_a_number_is_an_error() -> None:
    assert _metrics(LAB, {"alias": "t", "exact,none": 0.5, "exact_stderr,none": "N/A", "note,none": "N/A"}) == {"exact": 0.5}
    with pytest.raises(RuntimeError, match=r"task 'bard_lab' gave 'N/A' for exact"):
        _metrics(LAB, {"exact,none": "N/A"})
    with pytest.raises(RuntimeError, match=r"no metric exact; it has: fields"):
        _metrics(LAB, {"fields,none": 0.5})


def test_a_prompt_variant_is_never_a_silent_default() -> None:
    variants = {"default": {"pre_prompt": ""}, "qwen3_vl": {"pre_prompt": "Question: "}, "pre_prompt": ""}
    named = {name: LAB.model_copy(update={"prompt": name}) for name in ("qwen3_vl", "default", "qwen9_vl", None)}
    check_prompt(named["qwen3_vl"], variants)
    check_prompt(named["default"], variants)
    check_prompt(named[None], None)
    for name, words in (("qwen9_vl", "not one of default, qwen3_vl"), (None, "prompt None is not one of")):
        with pytest.raises(SuiteError, match=words):
            check_prompt(named[name], variants)
    with pytest.raises(SuiteError, match="write prompt: null"):
        check_prompt(named["default"], None)


def test_single_samples_are_scored_whatever_the_task_keeps_of_them() -> None:
    benchmark = Benchmark(name="b", task="b", prompt=None, metrics={"rate": 2.0})
    only = {"rate": lambda items: 2.0 * sum(item["answer"] == item["given"] for item in items) / len(items)}
    assert sample_score(benchmark, only, {"rate": 1}) == 0.5
    assert sample_score(benchmark, only, {"rate": {"score": 1.0, "category": "x"}}) == 1.0
    assert sample_score(benchmark, only, {"rate": {"answer": "A", "given": "A"}}) == 1.0
    assert sample_score(benchmark, only, {"rate": {"answer": "A"}}) is None
    assert sample_score(benchmark, only, {"other": 1.0}) is None
