"""The gate: passes what is complete, surely no less accurate than champion and source, and surely faster; says every reason."""

import random
from typing import Any

import pytest

from bard_core.config.sections.evaluation import GateConfig
from bard_core.promotion.gate import Decision, Judged, decide
from bard_core.store.refs import BenchmarkScore, EvalResult, ModelRef

GATE = GateConfig(accuracy_margin=0.02)


def records(scores: list[float]) -> list[dict[str, Any]]:
    return [{"benchmark": "b", "doc_id": i, "reference": "x", "score": score} for i, score in enumerate(scores)]


def first(right: int, count: int) -> list[float]:
    return [float(i < right) for i in range(count)]


def judged(scores: list[float], ratios: list[float], missing: tuple[str, ...] = (), crashed: int = 0) -> Judged:
    accuracy, speedup = sum(scores) / len(scores), sum(ratios) / len(ratios)
    model = ModelRef(uri="m", manifest_sha256="m", stage="pbm", block_size=4, parent_sha256=None)
    score = BenchmarkScore(
        name="b", task="t", task_version="1", prompt=None, metrics={"exact": accuracy}, accuracy=accuracy,
        accuracy_stderr=0.0, num_samples=len(scores), crashed=crashed, real_tokens=1, forwards=1, dataset_fingerprint="f",
    )  # fmt: skip
    result = EvalResult(
        uri="u", manifest_sha256=f"{accuracy}-{ratios}", model=model, suite="lab", suite_digest="d", benchmarks=(score,),
        missing=missing, accuracy=accuracy, accuracy_stderr=0.01, num_samples=len(scores), tokens_per_forward=2.0,
        tokens_per_s=1.0, ar_tokens_per_s=1.0, speedup=speedup,
    )  # fmt: skip
    return Judged(result, records(scores), ratios)


def spread(speedup: float) -> list[float]:
    return [speedup * (1 + 0.02 * (i % 3 - 1)) for i in range(12)]


def judge(right: int, before: int, speedup: float = 2.0, config: GateConfig = GATE, source: int = 900, **extra: Any) -> Decision:
    mine, best = judged(first(right, 1000), spread(speedup), **extra), judged(first(before, 1000), spread(1.5))
    return decide(mine, best, judged(first(source, 1000), [1.0] * 12), config)


def test_a_faster_equal_one_passes_and_the_evidence_is_kept() -> None:
    decision = judge(900, 900)
    assert decision.passed
    assert decision.reasons == (
        "accuracy +0.0 points against the champion on 1000 samples",
        "accuracy +0.0 points against the source on 1000 samples",
        "speed-up 2.00x against the champion's 1.50x, surely 1.33 times as fast, by 12 prompts",
    )
    assert decision.evidence["speedup"] == pytest.approx({"challenger": 2.0, "champion": 1.5, "min_gain": 0.0})
    assert {name: found["num_samples"] for name, found in decision.evidence["paired"].items()} == {
        "champion": 1000,
        "source": 1000,
    }
    assert decision.evidence["gain"]["times"] == pytest.approx(4 / 3)
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


@pytest.mark.parametrize(
    ("right", "changes", "words"),
    [
        (850, {}, ["accuracy -5.0 points against the champion on 1000 samples", "against the source"]),
        (890, {}, []),  # one point lost is surely less than two
        (885, {}, ["cannot be ruled out", "cannot be ruled out"]),  # within the margin, but not surely
        (900, {"source": 930}, ["accuracy -3.0 points against the source"]),  # as good as a champion that had lost too much
        (900, {"speedup": 1.5}, ["speed-up 1.50x against the champion's 1.50x: surely 1.00 times as fast"]),
        (900, {"speedup": 1.6, "config": GateConfig(min_speed_gain=0.1)}, ["where more than 1.10 is asked"]),
        (900, {"missing": ("chartqa",)}, ["incomplete: no score for chartqa"]),
        (900, {"crashed": 2}, ["incomplete: 2 samples crashed"]),
        (
            700,
            {"speedup": 1.0, "missing": ("mme",), "crashed": 1},
            ["no score for mme and 1 samples crashed", "-20.0", "-20.0", "1.00x"],
        ),
    ],
)
def test_every_reason_is_given(right: int, changes: dict[str, Any], words: list[str]) -> None:
    decision = judge(right, 900, **changes)
    assert (decision.passed, len(decision.reasons)) == ((True, 3) if not words else (False, len(words)))
    assert all(word in reason for word, reason in zip(words, decision.reasons, strict=False)), decision.reasons


def test_few_samples_prove_nothing_and_other_samples_or_prompts_are_not_compared() -> None:
    source = judged(first(6, 6), [1.0] * 12)
    assert "a loss of up to 50.0 cannot be ruled out" in decide(judged(first(6, 6), spread(2.0)), source, source, GATE).reason
    other = decide(judged(first(9, 9), spread(2.0)), judged(first(8, 8), spread(1.5)), source, GATE)
    assert "not comparable with the champion: the baseline has 8 samples" in other.reason
    few = decide(judged(first(6, 6), [9.0]), judged(first(6, 6), [1.0]), source, GATE)
    assert "fewer than two prompts" in few.reason
    unlike = decide(judged(first(6, 6), spread(2.0)), judged(first(6, 6), [1.0] * 4), source, GATE)
    assert "timed on 4 prompts, the candidate on 12" in unlike.reason


def test_a_faster_mean_that_one_prompt_made_is_no_gain() -> None:
    source = judged(first(900, 1000), [1.0] * 12)
    lucky = judged(first(900, 1000), [1.0] * 11 + [9.0])
    decision = decide(lucky, source, source, GATE)
    assert lucky.result.speedup > 1.6 and not decision.passed
    assert "surely 0.86 times as fast" in decision.reason


@pytest.mark.parametrize("gain", [0.0, 0.03])
def test_slightly_worse_challengers_do_not_ratchet_the_champion_down(gain: float) -> None:
    """Eight rounds of ten challengers, each half a point worse than the champion and by chance, or truly, a little faster."""
    draw = random.Random(0)
    count, margin = 2000, 0.02
    order = [draw.random() for _ in range(count)]  # how hard each sample is, for every model

    def model(accuracy: float, speed: float) -> Judged:
        scores = [float(hard + draw.gauss(0.0, 0.01) < accuracy) for hard in order]
        return judged(scores, [speed * draw.lognormvariate(0.0, 0.05) for _ in range(32)])

    source = model(0.9, 1.0)
    champion, true, speed, passed = source, 0.9, 1.0, 0
    for _ in range(8):
        best = None
        for _ in range(10):
            challenger = model(true - 0.005, speed * (1 + gain))
            if decide(challenger, champion, source, GateConfig(accuracy_margin=margin)).passed:
                passed += 1
                best = challenger
        if best is not None:
            champion, true, speed = best, true - 0.005, speed * (1 + gain)
    assert true >= 0.9 - margin
    if gain == 0.0:
        assert passed <= 8, "a gain by chance counts one time in twenty"
    else:
        assert champion is not source, "what is truly faster and surely within the margin passes"
