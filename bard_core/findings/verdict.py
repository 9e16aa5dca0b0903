"""The verdict rule: the paired difference over seeds, with an error that also knows how few samples were judged.

confirmed      the whole interval lies above the margin
not            the whole interval lies below it
inconclusive   the margin is inside, or there are fewer than two seeds
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Literal

from bard_core.evaluation.compare import standard_error

Verdict = Literal["confirmed", "not", "inconclusive", "not run", "not comparable"]
LEVEL = 0.95


@dataclass(frozen=True)
class Outcome:
    """A mean difference and its two-sided interval."""

    mean: float
    low: float
    high: float
    verdict: Verdict


def judged(differences: Sequence[float], sample_error: float, margin: float, comparisons: int = 1) -> Outcome:
    """The outcome of one comparison.

    Args:
        differences: candidate minus baseline, one a seed, each pair of the same seed.
        sample_error: standard error, over the judged samples, of the mean difference; 0: none is known.
        margin: what the difference must exceed.
        comparisons: how many are made of which one is enough: each is held to a share of the error (Bonferroni).

    The interval is the wider of two at 95 %: Student's over seeds, and the normal one over samples.
    """
    from scipy.stats import t

    mean, tail = fmean(differences), 1 - (1 - LEVEL) / (2 * comparisons)
    if len(differences) < 2:
        return Outcome(mean, -math.inf, math.inf, "inconclusive")
    over_seeds = float(t.ppf(tail, len(differences) - 1)) * standard_error(differences)
    half = max(over_seeds, NormalDist().inv_cdf(tail) * sample_error)
    low, high = mean - half, mean + half
    return Outcome(mean, low, high, "confirmed" if low > margin else "not" if high < margin else "inconclusive")


def sample_error(candidate: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> float:
    """Standard error over samples of the mean difference; both are [seeds][samples] of scores on the same samples."""
    differences = [[after - before for after, before in zip(c, b, strict=True)] for c, b in zip(candidate, baseline, strict=True)]
    return standard_error([fmean(sample) for sample in zip(*differences, strict=True)])


def together(verdicts: Sequence[Verdict], rule: Literal["all", "any"]) -> Verdict:
    """A claim's verdict from its comparisons'."""
    if not verdicts:
        return "inconclusive"
    wanted, other = all(v == "confirmed" for v in verdicts), any(v == "not" for v in verdicts)
    if rule == "any":
        wanted, other = any(v == "confirmed" for v in verdicts), all(v == "not" for v in verdicts)
    if wanted or other:
        return "confirmed" if wanted else "not"
    return "not run" if all(v == "not run" for v in verdicts) else "inconclusive"
