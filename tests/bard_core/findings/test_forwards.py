"""Accuracy at equal forwards: on the line between two judged thresholds, and nowhere else."""

from typing import Any

import pytest

from bard_core.findings.forwards import at_forwards
from bard_core.findings.results import _compared
from bard_core.findings.spec import Claim


def point(tokens_per_forward: float, *right: float) -> dict[str, Any]:
    samples = {"right": list(right)}
    return {"tokens_per_forward": tokens_per_forward, "accuracy": sum(right) / len(right), "samples": samples}


POINTS = {"0.5": point(8.0, 0, 0, 1, 1), "0.98": point(2.0, 1, 1, 1, 1), "0.9": point(4.0, 1, 0, 1, 1)}


@pytest.mark.parametrize(
    ("tokens_per_forward", "right"),
    [(2.0, [1, 1, 1, 1]), (3.0, [1, 0.5, 1, 1]), (4.0, [1, 0, 1, 1]), (7.0, [0.25, 0, 1, 1]), (8.0, [0, 0, 1, 1])],
)
def test_between_two_thresholds_every_sample_is_on_their_line(tokens_per_forward: float, right: list[float]) -> None:
    found = at_forwards(POINTS, tokens_per_forward)
    assert found is not None
    assert found["samples"]["right"] == right and found["accuracy"] == pytest.approx(sum(right) / 4)
    assert found["tokens_per_forward"] == tokens_per_forward


@pytest.mark.parametrize("tokens_per_forward", [1.9, 8.1])
def test_outside_of_what_was_judged_nothing_is_made_up(tokens_per_forward: float) -> None:
    assert at_forwards(POINTS, tokens_per_forward) is None


def test_self_speculation_is_no_threshold() -> None:
    assert at_forwards({**POINTS, "self_speculative": point(16.0, 1, 1, 1, 1)}, 9.0) is None


def test_thresholds_that_decode_alike_do_not_divide_by_nothing() -> None:
    assert at_forwards({"0.9": point(2.0, 1), "0.98": point(2.0, 1)}, 2.0) == point(2.0, 1)


def test_a_comparison_at_equal_forwards_reads_the_baseline_s_curve() -> None:
    """The candidate's one right answer more, at the TPF where the baseline lies half way between two thresholds."""
    both = {name: {"pbm.stages": [{"block_size": 4, "train": {"base": "lab-blocks", "steps": 1}}]} for name in ("new", "old")}
    sides = {side: {"variant": name, "model": "pbm-b4"} for side, name in (("candidate", "new"), ("baseline", "old"))}
    comparison = {"question": "?", **sides, "equal": "forwards"}
    claim = Claim.model_validate(
        {"name": "c", "number": 1, "question": "?", "variants": both, "seeds": [0, 1], "comparisons": [comparison]}
    )
    spent = {"total_steps": 1, "total_flops": 1.0}
    variants = {name: {"seeds": {str(seed): {"trained": {"pbm-b4": spent}} for seed in (0, 1)}} for name in both}
    mine = {"0.9": point(3.0, 1, 1, 1, 1)}
    judged = {(name, seed, "pbm-b4"): {"points": mine if name == "new" else POINTS} for name in both for seed in (0, 1)}
    found = _compared(claim, claim.comparisons[0], variants, judged, 1)
    assert found["differences"] == {"0": 0.125, "1": 0.125} and found["baseline_mean"] == 0.875
    judged["new", 1, "pbm-b4"] = {"points": {"0.9": point(9.0, 1, 1, 1, 1)}}
    assert set(_compared(claim, claim.comparisons[0], variants, judged, 1)["differences"]) == {"0"}, "no such TPF at seed 1"
