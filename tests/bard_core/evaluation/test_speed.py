"""Speed: the decoders take turns, warm-up is not counted, and the ratios are those of the clocks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bard_core.decoding import GenerationOutput, GenerationStats, RowStats
from bard_core.evaluation.speed import compare, take_turns


def prompt(name: str, length: int = 3) -> dict[str, Any]:
    return {"name": name, "input_ids": torch.zeros(1, length)}


P, Q = prompt("p"), prompt("q")


def decoder(name: str, calls: list[str], seconds: list[float], tokens: int = 10, prefill_s: float = 1.0) -> Callable[[Any], Any]:
    """One whose calls take the given decoding times."""
    times = iter(seconds)

    def decode(prompt: Any) -> GenerationOutput:
        calls.append(f"{name} {prompt['name']}")
        stats = GenerationStats((RowStats(tokens, 5),), 5, prefill_s, next(times), prefill_s)
        return GenerationOutput(torch.zeros(1, tokens), stats)

    return decode


def test_decoders_take_turns_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []
    timings = take_turns(
        [P, Q], {"ar": decoder("ar", calls, [99, 4, 6]), "block": decoder("block", calls, [99, 1, 3], prefill_s=0.5)}
    )
    assert calls == ["ar q", "block q", "ar p", "block p", "ar q", "block q"]
    speed = compare(timings["block"], timings["ar"])
    assert (speed.ar_tokens_per_s, speed.tokens_per_s, speed.prompts) == (2.0, 5.0, 2)
    assert speed.speedup == 2.5
    assert speed.ratios == pytest.approx((4.0, 2.0)) and speed.speedup_median == pytest.approx(3.0)
    assert speed.end_to_end_speedup == pytest.approx((20 / 5) / (20 / 12))
    assert (speed.time_to_first_token_s, speed.ar_time_to_first_token_s) == (0.5, 1.0)
    summary = timings["block"].summary()
    assert (summary["tokens_per_forward"], summary["ms_per_forward"], summary["prefill_s"]) == (2.0, 400.0, 0.5)


def test_repeats_go_over_all_prompts_again() -> None:
    calls: list[str] = []
    timings = take_turns([P, Q], {"ar": decoder("ar", calls, [9, 1, 1, 1, 1])}, repeats=2)
    assert calls == ["ar q", "ar p", "ar q", "ar p", "ar q"]
    assert len(timings["ar"].runs) == 4


def test_each_size_of_prompt_has_a_warm_up() -> None:
    """What a size costs once, a compilation say, falls into no timed call."""
    calls: list[str] = []
    prompts = [prompt("128", 128), prompt("65", 65), prompt("129", 129), prompt("1", 1)]
    take_turns(prompts, {"ar": decoder("ar", calls, [99, 99, 99, 1, 1, 1, 1])})
    assert sorted(calls[:3]) == ["ar 1", "ar 129", "ar 65"]
    assert calls[3:] == ["ar 128", "ar 65", "ar 129", "ar 1"]


def test_each_number_of_rows_has_a_warm_up() -> None:
    calls: list[str] = []
    batches = [{"name": str(rows), "input_ids": torch.zeros(rows, 3)} for rows in (8, 8, 5)]
    take_turns(batches, {"ar": decoder("ar", calls, [99, 99, 1, 1, 1])})
    assert calls == ["ar 5", "ar 8", "ar 8", "ar 8", "ar 5"]


def test_a_warm_up_goes_on_until_an_answer_took_a_second_block() -> None:
    """Whose first forward is wider, and would be compiled in a timed call."""
    calls: list[str] = []
    blocks = {"p": (3,), "q": (2, 1), "r": (4,), "s": (2, 2)}

    def decode(prompt: Any) -> GenerationOutput:
        calls.append(prompt["name"])
        return GenerationOutput(torch.zeros(1, 9), GenerationStats((RowStats(9, 5, blocks[prompt["name"]]),), 5, 1.0, 1.0, 1.0))

    take_turns([prompt(name) for name in "sprqpr"], {"block": decode})
    assert calls == [*"rpq", *"sprqpr"]


def test_the_baseline_against_itself_is_one() -> None:
    timing = take_turns([P], {"ar": decoder("ar", [], [99, 5])})["ar"]
    speed = compare(timing, timing)
    assert (speed.speedup, speed.speedup_median, speed.end_to_end_speedup) == (1.0, 1.0, 1.0)
    assert speed.tokens_per_s == speed.ar_tokens_per_s == 2.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the allocator's peak is reported")
def test_the_peak_of_memory_is_that_of_the_decoder_that_made_it() -> None:
    small, large = decoder("small", [], [1, 1]), decoder("large", [], [1, 1])

    def hungry(prompt: Any) -> GenerationOutput:
        torch.ones(64 * 2**20 // 4)
        return large(prompt)

    timings = take_turns([P], {"small": small, "hungry": hungry, "also small": decoder("", [], [1, 1])})
    if timings["small"].peak_bytes is None:
        pytest.skip("this system does not tell a process's peak of memory")
    for name in ("small", "also small"):
        assert (timings["hungry"].peak_bytes or 0) - (timings[name].peak_bytes or 0) > 48 * 2**20


def test_no_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        take_turns([], {"ar": decoder("ar", [], [])})
