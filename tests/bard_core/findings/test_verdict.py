"""The verdict rule: which differences over how many seeds show what."""

import math

import pytest
from scipy.stats import ttest_1samp

from bard_core.findings.verdict import judged, sample_error, together


def test_the_interval_is_student_s_over_seeds() -> None:
    differences = [0.02, 0.05, 0.03, 0.04]
    outcome = judged(differences, 0.0, 0.0)
    interval = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert (outcome.low, outcome.high) == pytest.approx((interval.low, interval.high))
    assert outcome.verdict == "confirmed" and outcome.mean == pytest.approx(0.035)


def test_few_images_widen_it() -> None:
    assert judged([0.02, 0.021, 0.02], 0.0, 0.0).verdict == "confirmed"
    wide = judged([0.02, 0.021, 0.02], 0.02, 0.0)
    assert wide.verdict == "inconclusive" and wide.high - wide.low == pytest.approx(2 * 1.96 * 0.02, rel=1e-3)


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([-0.03, -0.031, -0.029], 0.0, "not"),
        ([-0.003, -0.004, -0.002], -0.01, "confirmed"),  # no more is lost than may be
        ([0.05], 0.0, "inconclusive"),
        ([0.05, -0.05, 0.02], 0.0, "inconclusive"),
    ],
)
def test_verdicts(differences: list[float], margin: float, verdict: str) -> None:
    assert judged(differences, 0.0, margin).verdict == verdict


def test_one_of_several_is_held_to_a_stricter_level() -> None:
    differences = [0.02, 0.05, 0.03]
    alone, among = judged(differences, 0.0, 0.0), judged(differences, 0.0, 0.0, comparisons=4)
    assert among.low < alone.low and alone.mean == among.mean
    interval = ttest_1samp(differences, 0.0).confidence_interval(1 - 0.05 / 4)
    assert (among.low, among.high) == pytest.approx((interval.low, interval.high))


def test_the_error_over_images_is_that_of_the_mean_over_seeds() -> None:
    candidate, baseline = [[1, 1, 0, 1], [1, 0, 0, 1]], [[1, 0, 0, 1], [1, 0, 0, 0]]
    means = [0.0, 0.5, 0.0, 0.5]
    spread = math.sqrt(sum((value - 0.25) ** 2 for value in means) / 3 / 4)
    assert sample_error(candidate, baseline) == pytest.approx(spread)


def test_a_claim_s_verdict_is_all_of_its_comparisons_or_any() -> None:
    assert together(["confirmed", "confirmed"], "all") == "confirmed"
    assert together(["confirmed", "inconclusive"], "all") == "inconclusive"
    assert together(["confirmed", "not"], "all") == "not"
    assert together(["confirmed", "not"], "any") == "confirmed"
    assert together(["not", "not"], "any") == "not"
    assert together(["not", "not comparable"], "any") == "inconclusive"
    assert together(["not run", "not run"], "all") == "not run"
