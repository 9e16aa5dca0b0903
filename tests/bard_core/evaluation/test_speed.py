"""Speed: the two decoders take turns, warm-up is not counted, and the ratios are those of the clocks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bard_core.decoding import GenerationOutput, GenerationStats, RowStats
from bard_core.evaluation.speed import measure


def decoder(name: str, calls: list[str], seconds: list[float], tokens: int = 10, prefill_s: float = 1.0) -> Callable[[Any], Any]:
    """One whose calls take the given decoding times."""
    times = iter(seconds)

    def decode(prompt: str) -> GenerationOutput:
        calls.append(f"{name} {prompt}")
        stats = GenerationStats((RowStats(tokens, 5),), 5, prefill_s, next(times), prefill_s)
        return GenerationOutput(torch.zeros(1, tokens), stats)

    return decode


def test_decoders_take_turns_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []
    speed = measure(["p", "q"], decoder("ar", calls, [99, 4, 6]), decoder("block", calls, [99, 1, 3]))
    assert calls == ["ar p", "block p", "ar p", "block p", "ar q", "block q"]
    assert (speed.ar_tokens_per_s, speed.tokens_per_s, speed.prompts) == (2.0, 5.0, 2)
    assert speed.speedup == 2.5
    assert speed.speedup_median == pytest.approx(3.0)  # of 4 and 2
    assert speed.end_to_end_speedup == pytest.approx((20 / 6) / (20 / 12))


def test_the_source_is_its_own_baseline_and_decodes_once() -> None:
    calls: list[str] = []
    speed = measure(["p"], decoder("ar", calls, [99, 5]), None)
    assert calls == ["ar p", "ar p"]
    assert (speed.speedup, speed.speedup_median, speed.end_to_end_speedup) == (1.0, 1.0, 1.0)
    assert speed.tokens_per_s == speed.ar_tokens_per_s == 2.0


def test_no_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        measure([], decoder("ar", [], []), None)
