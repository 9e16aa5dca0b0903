"""Speed against the autoregressive baseline, interleaved in one run at batch 1, so that a drifting machine hits both.

Real tokens only. Decoding speed leaves the prefill out; the end-to-end numbers count it. The first token of the autoregressive
baseline falls into its prefill but counts as a token, which favours the baseline.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tqdm import tqdm

from bard_core.decoding import GenerationOutput, GenerationStats

Decode = Callable[[Any], GenerationOutput]


@dataclass(frozen=True)
class Speed:
    """Tokens a second of the model and of the baseline (``ar_``) over all prompts, and their ratios.

    ``speedup`` is the ratio of the two decoding speeds over all prompts together, ``speedup_median`` the median of the prompts'
    own ratios; ``end_to_end_`` counts the prefill too.
    """

    tokens_per_s: float
    ar_tokens_per_s: float
    speedup: float
    speedup_median: float
    end_to_end_tokens_per_s: float
    end_to_end_ar_tokens_per_s: float
    end_to_end_speedup: float
    prompts: int


def measure(prompts: Sequence[Any], decode_ar: Decode, decode: Decode | None) -> Speed:
    """Decode every prompt with both in turn, after one warm-up of each.

    Args:
        prompts: encoded prompts of one row each.
        decode_ar: the baseline.
        decode: the model; None when it is the baseline itself, whose speed-up is 1 by definition.

    Raises:
        ValueError: there are no prompts.
    """
    if not prompts:
        raise ValueError("speed needs at least one prompt; the suite gave none")
    decoders = [decode_ar] if decode is None else [decode_ar, decode]
    for decoder in decoders:
        decoder(prompts[0])
    runs: list[list[GenerationStats]] = [[] for _ in decoders]
    for prompt in tqdm(prompts, desc="timing", unit="prompt", leave=False):
        for decoder, into in zip(decoders, runs, strict=True):
            into.append(decoder(prompt).stats)
    base, mine = runs[0], runs[-1]
    return Speed(
        tokens_per_s=_rate(mine),
        ar_tokens_per_s=_rate(base),
        speedup=_rate(mine) / _rate(base),
        speedup_median=median(_rate([a]) / _rate([b]) for a, b in zip(mine, base, strict=True)),
        end_to_end_tokens_per_s=_rate(mine, prefill=True),
        end_to_end_ar_tokens_per_s=_rate(base, prefill=True),
        end_to_end_speedup=_rate(mine, prefill=True) / _rate(base, prefill=True),
        prompts=len(prompts),
    )


def _rate(runs: Sequence[GenerationStats], prefill: bool = False) -> float:
    """Real tokens a second. A clock tick is the least time, so that a one-token answer of the baseline divides by no zero."""
    seconds = sum(run.decode_s + (run.prefill_s if prefill else 0.0) for run in runs)
    return sum(run.real_tokens for run in runs) / max(seconds, 1e-9)
