"""Speed against the autoregressive baseline, interleaved in one run at batch 1, so that a drifting machine hits both.

Real tokens only; prefill is timed apart and left out of decoding speed. The first prompt warms both up and is not counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bard_core.decoding import GenerationOutput

Decode = Callable[[Any], GenerationOutput]


@dataclass(frozen=True)
class Speed:
    """Tokens a second of decoding, of both; ``end_to_end`` counts prefill too. ``speedup`` is the median ratio a prompt."""

    tokens_per_s: float
    ar_tokens_per_s: float
    speedup: float
    end_to_end_tokens_per_s: float
    end_to_end_ar_tokens_per_s: float
    prompts: int


def measure(prompts: Sequence[Any], decode: Decode, decode_ar: Decode) -> Speed:
    """Decode every prompt with both, in turn. Needs at least two prompts: one to warm up, one to count."""
    if len(prompts) < 2:
        raise ValueError(f"speed needs at least 2 prompts (the first warms up), got {len(prompts)}")
    decode_ar(prompts[0])
    decode(prompts[0])
    mine, base = [], []
    for prompt in prompts[1:]:
        base.append(decode_ar(prompt).stats)
        mine.append(decode(prompt).stats)

    def rate(runs: list[Any], prefill: bool) -> float:
        seconds = sum(run.decode_s + (run.prefill_s if prefill else 0) for run in runs)
        return float(sum(run.real_tokens for run in runs) / max(seconds, 1e-9))

    ratios = [rate([a], False) / rate([b], False) for a, b in zip(mine, base, strict=True)]
    return Speed(rate(mine, False), rate(base, False), median(ratios), rate(mine, True), rate(base, True), len(base))
