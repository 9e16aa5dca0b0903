"""Accuracy at equal forwards: what a model would reach between two points of decoding that were judged."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from bard_core.findings.spec import SELF_SPECULATION

Body = dict[str, Any]


def at_forwards(points: Mapping[str, Body], tokens_per_forward: float) -> Body | None:
    """The point of this TPF on the line between the two judged thresholds around it, the scores of single samples too.

    None: no two thresholds have it between them.
    """
    swept = sorted((point for name, point in points.items() if name != SELF_SPECULATION), key=_tpf)
    for slow, fast in pairwise(swept):
        if _tpf(slow) <= tokens_per_forward <= _tpf(fast):
            apart = _tpf(fast) - _tpf(slow)
            share = (tokens_per_forward - _tpf(slow)) / apart if apart else 0.0
            scores = zip(slow["samples"]["right"], fast["samples"]["right"], strict=True)
            return {
                "tokens_per_forward": tokens_per_forward,
                "accuracy": slow["accuracy"] + share * (fast["accuracy"] - slow["accuracy"]),
                "samples": {"right": [one + share * (other - one) for one, other in scores]},
            }
    return None


def _tpf(point: Mapping[str, Any]) -> float:
    return float(point["tokens_per_forward"])
