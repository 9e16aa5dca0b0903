"""Speed at a given accuracy, and the area under the curve: numbers that can be checked by hand."""

import math
from typing import Any

import pytest

from bard_core.config.sections.evaluation import DecodingConfig, EvaluationConfig
from bard_core.evaluation.tradeoff import accuracy_under_parallelism, decodings, headline, points, speedup_at_parity
from bard_core.store.refs import EvalResult, ModelRef, OperatingPoint


def point(threshold: float, accuracy: float, speedup: float, tpf: float = 1.0) -> OperatingPoint:
    return OperatingPoint(
        confidence_threshold=threshold, accuracy=accuracy, tokens_per_forward=tpf, tokens_per_s=10 * speedup, speedup=speedup
    )


def result(name: str, accuracy: float, speedup: float, stage: str = "pbm", sweep: tuple[OperatingPoint, ...] = ()) -> EvalResult:
    model = ModelRef(uri=name, manifest_sha256=name, stage=stage, block_size=4, parent_sha256=None)
    return EvalResult(
        uri=name, manifest_sha256=name, model=model, suite="lab", suite_digest="0", accuracy=accuracy, accuracy_stderr=0.01,
        num_samples=9, tokens_per_forward=speedup, tokens_per_s=10 * speedup, ar_tokens_per_s=10.0, speedup=speedup,
        sweep=sweep,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "clean_attention", "expected"),
    [
        ({}, "causal", [0.9]),
        ({"sweep_thresholds": (0.95, 0.5, 0.9)}, "block", [0.5, 0.9, 0.95]),
        ({"sweep_thresholds": (0.5,)}, "causal", [0.5, 0.9, None]),
        ({"decoding": DecodingConfig(strategy="self_speculative"), "sweep_thresholds": (0.5,)}, "causal", [None]),
    ],
)
def test_the_configured_decoding_is_among_those_judged(config: Any, clean_attention: Any, expected: list[float | None]) -> None:
    config = EvaluationConfig(**config)
    found = decodings(config, clean_attention)
    assert list(found) == expected
    assert config.decoding in found.values()
    for threshold, decoding in found.items():
        assert decoding.strategy == ("self_speculative" if threshold is None else "dynamic")
        assert threshold in (None, decoding.confidence_threshold)


def test_revision_is_for_thresholds_and_not_for_self_speculation() -> None:
    config = EvaluationConfig(decoding=DecodingConfig(revision_threshold=0.2), sweep_thresholds=(0.5,))
    found = decodings(config, "causal")
    assert {threshold: decoding.revision_threshold for threshold, decoding in found.items()} == {0.5: 0.2, 0.9: 0.2, None: None}


SOURCE = result("source", 0.90, 1.0, "source")


def test_a_model_without_a_sweep_is_one_point() -> None:
    results = [SOURCE, result("good", 0.92, 1.5), result("equal", 0.90, 2.0), result("close", 0.88, 3.0), result("bad", 0.7, 5.0)]

    def best(margin: float) -> str:
        found = speedup_at_parity(results, margin)
        assert found is not None
        return found[0].uri

    assert [best(margin) for margin in (0.0, 0.025, 0.5)] == ["equal", "close", "bad"]
    assert speedup_at_parity([SOURCE, results[-1]]) is None
    assert points(results[1])[0].confidence_threshold is None


def test_the_best_threshold_of_the_best_model_is_taken() -> None:
    swept = result("swept", 0.88, 3.0, sweep=(point(0.5, 0.85, 4.0), point(0.9, 0.88, 3.0), point(0.95, 0.91, 2.5)))
    results = [SOURCE, result("plain", 0.95, 2.2), swept]
    for margin, speedup in ((0.0, 2.5), (0.025, 3.0), (0.06, 4.0)):
        assert speedup_at_parity(results, margin) == (swept, next(p for p in swept.sweep if p.speedup == speedup))


def test_area_of_no_loss_is_accuracy_times_parallelism() -> None:
    assert accuracy_under_parallelism([point(0.9, 0.8, 0, tpf=1.0)], 0.8) == pytest.approx(80)
    flat = [point(t, 0.8, 0, tpf=tpf) for t, tpf in ((0.9, 2.0), (0.5, 5.0), (0.7, 3.0))]
    assert accuracy_under_parallelism(flat, 0.8) == pytest.approx(5 * 80)


def test_area_by_hand_and_what_is_left_out_of_it() -> None:
    """Worse accuracy weighs less, and points more than 5 below the slowest one's accuracy do not count."""
    curve = [point(0.9, 0.80, 0, tpf=2.0), point(0.7, 0.76, 0, tpf=4.0), point(0.5, 0.70, 0, tpf=9.0)]
    high, low = 80 * math.exp(-3 * (1 - 80 / 90)), 76 * math.exp(-3 * (1 - 76 / 90))
    assert accuracy_under_parallelism(curve, 0.9) == pytest.approx(2 * 80 + (4 - 2) * (high + low) / 2)
    with pytest.raises(ValueError, match="at least one point"):
        accuracy_under_parallelism([], 0.9)


def test_a_models_headline_is_its_own_best_at_the_sources_accuracy() -> None:
    source = result("source", 0.9, 1.0, stage="source")
    good = result("good", 0.8, 5.0, sweep=(point(0.5, 0.8, 5.0, tpf=4.0), point(0.9, 0.95, 3.0, tpf=2.0)))
    poor = result("poor", 0.5, 9.0, sweep=(point(0.5, 0.5, 9.0), point(0.9, 0.6, 8.0)))
    numbers = {found.uri: values for found, values in headline([source, good, poor, result("unswept", 0.9, 2.0)])}
    assert set(numbers) == {"good", "poor"}
    assert numbers["good"]["speedup_at_parity"] == 3.0 and "speedup_at_parity" not in numbers["poor"]
    assert numbers["good"]["aup"] == accuracy_under_parallelism(good.sweep, 0.95)
