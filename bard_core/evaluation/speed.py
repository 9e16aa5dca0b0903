"""Speed: decoders take turns over the same prompts in one run, so that a drifting machine hits all of them alike.

Real tokens only. Decoding speed leaves the prefill out; the end-to-end numbers count it. The first token of the autoregressive
baseline falls into its prefill but counts as a token, which favours the baseline.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bard_core.decoding import GenerationOutput, GenerationStats
from bard_core.progress import Bar

Decode = Callable[[Any], GenerationOutput]


@dataclass(frozen=True)
class Timing:
    """The calls of one decoder; rates are over all of them together.

    Attributes:
        runs: the numbers of every timed call.
        peak_bytes: the most memory held in any call: allocated on the GPU where there is one, else resident in the whole
            process, weights and libraries included; None where the system does not tell.
    """

    runs: tuple[GenerationStats, ...]
    peak_bytes: int | None = None

    @property
    def tokens_per_s(self) -> float:
        """Real tokens a second of decoding, prefill left out."""
        return _rate(self.runs)

    @property
    def end_to_end_tokens_per_s(self) -> float:
        return _rate(self.runs, prefill=True)

    @property
    def tokens_per_forward(self) -> float:
        return sum(run.real_tokens for run in self.runs) / max(1, sum(run.forwards for run in self.runs))

    @property
    def ms_per_forward(self) -> float:
        """Decoding time of one call of the body, for the whole batch."""
        return 1000 * sum(run.decode_s for run in self.runs) / max(1, sum(run.batch_forwards for run in self.runs))

    def summary(self) -> dict[str, float | None]:
        """The numbers by name; prefill and time to first token are medians over the calls."""
        return {
            "tokens_per_s": self.tokens_per_s,
            "end_to_end_tokens_per_s": self.end_to_end_tokens_per_s,
            "tokens_per_forward": self.tokens_per_forward,
            "ms_per_forward": self.ms_per_forward,
            "prefill_s": median(run.prefill_s for run in self.runs),
            "time_to_first_token_s": median(run.time_to_first_token_s for run in self.runs),
            "peak_bytes": self.peak_bytes,
        }


@dataclass(frozen=True)
class Speed:
    """A decoder against the baseline (``ar_``), and the ratios.

    ``speedup`` is the ratio of the two decoding speeds over all prompts together, ``speedup_median`` the median of the prompts'
    own ratios, which ``ratios`` has in the order of the prompts; ``end_to_end_`` counts the prefill too.
    """

    tokens_per_s: float
    ar_tokens_per_s: float
    speedup: float
    speedup_median: float
    end_to_end_tokens_per_s: float
    end_to_end_ar_tokens_per_s: float
    end_to_end_speedup: float
    time_to_first_token_s: float
    ar_time_to_first_token_s: float
    peak_bytes: int | None
    ar_peak_bytes: int | None
    prompts: int
    ratios: tuple[float, ...]


def take_turns(prompts: Sequence[Any], decoders: Mapping[str, Decode], repeats: int = 1) -> dict[str, Timing]:
    """Decode every prompt with every decoder in turn, ``repeats`` times, after warming each up.

    Kernels are chosen, and forwards compiled, by size: the number of rows, and the length up to the next power of two. A decoder
    is warm for a size after a prompt whose answer took more than one block, because the second block's first forward is wider.
    It is warm, too, after all prompts of that size.

    Args:
        prompts: encoded prompts, a batch each.
        decoders: by name.

    Raises:
        ValueError: there are no prompts.
    """
    if not prompts:
        raise ValueError("speed needs at least one prompt; the suite gave none")
    warm: set[tuple[str, int, int]] = set()
    for prompt in Bar([*reversed(prompts)], desc="warming up", unit="prompt", leave=False):
        rows, length = prompt["input_ids"].shape
        for name, decode in decoders.items():
            size = (name, rows, (length - 1).bit_length())
            if size not in warm and {len(steps) for steps in decode(prompt).stats.steps_per_block} != {1}:
                warm.add(size)
    runs: dict[str, list[GenerationStats]] = {name: [] for name in decoders}
    peaks: dict[str, list[int]] = {name: [] for name in decoders}
    for prompt in Bar([*prompts] * repeats, desc="timing", unit="prompt", leave=False):
        for name, decode in decoders.items():
            _forget_peak()
            runs[name].append(decode(prompt).stats)
            peaks[name].append(_peak() or 0)
    return {name: Timing(tuple(runs[name]), max(peaks[name]) or None) for name in decoders}


def compare(timing: Timing, baseline: Timing) -> Speed:
    """A decoder's timing against the baseline's, both from one call of :func:`take_turns`."""
    mine, base = timing.summary(), baseline.summary()
    ratios = tuple(_rate([a]) / _rate([b]) for a, b in zip(timing.runs, baseline.runs, strict=True))
    return Speed(
        tokens_per_s=timing.tokens_per_s,
        ar_tokens_per_s=baseline.tokens_per_s,
        speedup=timing.tokens_per_s / baseline.tokens_per_s,
        speedup_median=median(ratios),
        end_to_end_tokens_per_s=timing.end_to_end_tokens_per_s,
        end_to_end_ar_tokens_per_s=baseline.end_to_end_tokens_per_s,
        end_to_end_speedup=timing.end_to_end_tokens_per_s / baseline.end_to_end_tokens_per_s,
        time_to_first_token_s=mine["time_to_first_token_s"] or 0.0,
        ar_time_to_first_token_s=base["time_to_first_token_s"] or 0.0,
        peak_bytes=timing.peak_bytes,
        ar_peak_bytes=baseline.peak_bytes,
        prompts=len(timing.runs),
        ratios=ratios,
    )


def _rate(runs: Sequence[GenerationStats], prefill: bool = False) -> float:
    """Real tokens a second. A clock tick is the least time, so that a one-token answer of the baseline divides by no zero."""
    seconds = sum(run.decode_s + (run.prefill_s if prefill else 0.0) for run in runs)
    return sum(run.real_tokens for run in runs) / max(seconds, 1e-9)


def _forget_peak() -> None:
    """Start a new peak of memory. Linux resets a process's high-water mark when 5 is written to ``clear_refs`` (proc(5))."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # no such interface: the peak is then that of the process's whole life, or unknown
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int | None:
    """Bytes of the peak since the last reset."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
