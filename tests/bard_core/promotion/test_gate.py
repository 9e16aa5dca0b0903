"""The gate: passes what is complete, no less accurate and faster; says every reason otherwise."""

from typing import Any

import pytest

from bard_core.config.sections import GateConfig
from bard_core.promotion.gate import Decision, decide
from bard_core.store.refs import BenchmarkScore, EvalResult, ModelRef

GATE = GateConfig(accuracy_margin=0.02)


def records(right: int, count: int) -> list[dict[str, Any]]:
    return [{"benchmark": "b", "doc_id": i, "id": str(i), "reference": "x", "score": float(i < right)} for i in range(count)]


def result(right: int, count: int, speedup: float, missing: tuple[str, ...] = (), crashed: int = 0) -> EvalResult:
    model = ModelRef(uri="m", manifest_sha256="m", stage="pbm", block_size=4, parent_sha256=None)
    score = BenchmarkScore(
        name="b", task="t", task_version="1", prompt=None, metrics={"exact": right / count}, accuracy=right / count,
        accuracy_stderr=0.0, num_samples=count, crashed=crashed, real_tokens=1, forwards=1, dataset_fingerprint="f",
    )  # fmt: skip
    return EvalResult(
        uri="u", manifest_sha256="e", model=model, suite="lab", suite_digest="d", benchmarks=(score,), missing=missing,
        accuracy=right / count, accuracy_stderr=0.01, num_samples=count, tokens_per_forward=2.0, tokens_per_s=1.0,
        ar_tokens_per_s=1.0, speedup=speedup, seconds=1.0,
    )  # fmt: skip


def judge(right: int, before: int, count: int = 1000, speedup: float = 2.0, config: GateConfig = GATE, **extra: Any) -> Decision:
    return decide(
        result(right, count, speedup, **extra), result(before, count, 1.5), records(right, count), records(before, count), config
    )


def test_a_faster_equal_one_passes_and_the_evidence_is_kept() -> None:
    decision = judge(900, 900)
    assert decision.passed and decision.reason == "no less accurate, faster, complete"
    assert decision.evidence["speedup"] == {"challenger": 2.0, "champion": 1.5, "min_gain": 0.0}
    assert decision.evidence["paired"]["num_samples"] == 1000
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


@pytest.mark.parametrize(
    ("right", "changes", "words"),
    [
        (850, {}, ["accuracy -5.0 points on 1000 samples"]),
        (890, {}, []),  # one point lost is surely less than two
        (885, {}, ["cannot be ruled out"]),  # within the margin, but not surely
        (900, {"speedup": 1.5}, ["speed-up 1.50x, not above the champion's 1.50x"]),
        (900, {"speedup": 1.6, "config": GateConfig(min_speed_gain=0.1)}, ["by 10 %"]),
        (900, {"missing": ("chartqa",)}, ["incomplete: no score for chartqa"]),
        (900, {"crashed": 2}, ["incomplete: 2 samples crashed"]),
        (700, {"speedup": 1.0, "missing": ("mme",), "crashed": 1}, ["no score for mme and 1 samples crashed", "-20.0", "1.00x"]),
    ],
)
def test_every_reason_is_given(right: int, changes: dict[str, Any], words: list[str]) -> None:
    decision = judge(right, 900, **changes)
    assert (decision.passed, len(decision.reasons)) == (not words, len(words))
    assert all(word in reason for word, reason in zip(words, decision.reasons, strict=True)), decision.reasons


def test_few_samples_prove_nothing_and_other_samples_are_not_compared() -> None:
    assert "a loss of up to 50.0 cannot be ruled out" in judge(6, 6, count=6).reason
    other = decide(result(9, 9, 2.0), result(9, 9, 1.5), records(9, 9), records(8, 8), GATE)
    assert not other.passed and "not comparable with the champion" in other.reason
