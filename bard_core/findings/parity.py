"""Speed at parity: of a variant's models and points of decoding, the fastest that keeps a share of the source's accuracy."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from bard_core.findings.judge import AUTOREGRESSIVE
from bard_core.findings.spec import SOURCE

NUMBER, NAME = 4, "parity"
LEVELS = (1.0, 0.999, 0.988, 0.975)  # of the source's accuracy, by the same seed
Body = Mapping[str, Any]


def fastest(judged: Body, level: float) -> tuple[float, float] | None:
    """(speed-up, with prefill) of a seed's fastest point at ``level`` of its source's accuracy; None: no point keeps it."""
    floor = level * judged[SOURCE][AUTOREGRESSIVE]["accuracy"] - 1e-12
    fit = [
        (point["speedup"], point["end_to_end_speedup"])
        for model, points in judged.items()
        if model != SOURCE
        for point in points.values()
        if point["accuracy"] >= floor
    ]
    return max(fit, default=None)


def verdict(results: Sequence[Body]) -> str:
    """The row of the table of verdicts: of all claims' variants the fastest, in the mean, that keeps all with every seed."""
    question = f"| {NUMBER} | How fast is a model that keeps the source's accuracy? A table in every claim | measured | "
    best = (0.0, 0.0, "")
    for body in results:
        for name, variant in body["variants"].items():
            found = [one for seed in _seeds(variant) if (one := fastest(seed, LEVELS[0])) is not None]
            if len(found) == len(body["seeds"]) > 1:
                speedup, with_prefill = (fmean(numbers) for numbers in zip(*found, strict=True))
                best = max(best, (speedup, with_prefill, f"{name} of claim {body['number']}"))
    if not best[0]:
        return question + "none with every seed |"
    return question + f"{best[0]:.1f}x ({best[1]:.1f}x with prefill) with all of it, every seed: {best[2]} |"


def _seeds(variant: Body) -> list[Body]:
    """What was judged with each seed, where the source was too."""
    return [seed["judged"] for seed in variant["seeds"].values() if len(seed["judged"]) > 1 and SOURCE in seed["judged"]]


def table(body: Body) -> Iterator[str]:
    """Markdown: a row a variant; means over the seeds that keep the level, with how many do where not all."""
    rows = []
    for name, variant in body["variants"].items():
        if seeds := _seeds(variant):
            rows.append(f"| {name} | " + " | ".join(_cell([fastest(seed, level) for seed in seeds]) for level in LEVELS) + " |")
    if rows:
        yield "Speed-up at a share of the source's accuracy, with prefill in brackets:\n"
        yield "| variant | " + " | ".join(f"{100 * level:g} %" for level in LEVELS) + " |"
        yield "| --- |" + " ---: |" * len(LEVELS)
        yield from rows
        yield ""


def _cell(found: list[tuple[float, float] | None]) -> str:
    reached = [one for one in found if one is not None]
    if not reached:
        return "none"
    few = f", {len(reached)} of {len(found)} seeds" if len(reached) < len(found) else ""
    return f"{fmean(one[0] for one in reached):.1f}x ({fmean(one[1] for one in reached):.1f}x){few}"
