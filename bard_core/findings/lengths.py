"""Accuracy and speed by the length of the right answer: a short one leaves little to decode at once."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from bard_core.findings.sharing import told_once

BOUNDS = (4, 16, 64)  # most tokens of a class, the end token included; the last class has no bound
NAMES = (f"1 to {BOUNDS[0]}", *(f"{low + 1} to {high}" for low, high in pairwise(BOUNDS)), f"{BOUNDS[-1] + 1} and more")
Body = Mapping[str, Any]


def by_length(judgement: Body) -> dict[str, dict[str, dict[str, float | None]]]:
    """Point of decoding -> class of answers -> accuracy, tokens a forward, speed-up; nothing where all answers are of one class.

    ``judgement``: what ``judge`` made. ``speedup``: median over the prompts of the class that were timed; None: none was, or an
    older judgement does not say which.
    """
    classes: dict[int, list[int]] = {}
    for i, tokens in enumerate(judgement["answers"]):
        classes.setdefault(bisect_left(BOUNDS, tokens), []).append(i)
    if len(classes) < 2:
        return {}
    found = {}
    for point, body in judgement["points"].items():
        ratios = dict(zip(judgement.get("timed", ()), body["speed"].get("ratios", ()), strict=True))
        found[point] = {NAMES[number]: _numbers(body["samples"], mine, ratios) for number, mine in sorted(classes.items())}
    return found


def _numbers(samples: Body, mine: Sequence[int], ratios: Mapping[int, float]) -> dict[str, float | None]:
    def of(name: str) -> list[float]:
        return [samples[name][i] for i in mine]

    timed = [ratios[i] for i in mine if i in ratios]
    return {
        "accuracy": fmean(of("right")),
        "tokens_per_forward": sum(of("real_tokens")) / sum(of("forwards")),
        "speedup": median(timed) if timed else None,
    }


def table(body: Body) -> Iterator[str]:
    """Markdown: a row a model and point, a column a class; means over seeds. A model that variants share is told once."""
    rows: dict[tuple[str, str, str], list[Body]] = {}
    names = told_once(body["variants"])
    for name, variant in body["variants"].items():
        for seed in variant["seeds"].values():
            for model, points in seed.get("lengths", {}).items():
                for point, classes in points.items():
                    if (name, model) in names:
                        rows.setdefault((names[name, model], model, point), []).append(classes)
    if not rows:
        return
    there = [name for name in NAMES if any(name in classes for seeds in rows.values() for classes in seeds)]
    yield "By the tokens of the right answer: accuracy, TPF, speed-up.\n"
    yield "| variant | model | at | " + " | ".join(there) + " |"
    yield "| --- | --- | --- |" + " ---: |" * len(there)
    for named, seeds in rows.items():
        cells = [_cell([one[name] for one in seeds if name in one]) for name in there]
        yield f"| {' | '.join([*named, *cells])} |"
    yield ""


def _cell(seeds: Sequence[Body]) -> str:
    if not seeds:
        return "–"
    accuracy, tpf = (fmean(one[name] for one in seeds) for name in ("accuracy", "tokens_per_forward"))
    timed = [one["speedup"] for one in seeds if one["speedup"] is not None]
    return f"{100 * accuracy:.1f} %, {tpf:.2f}" + (f", {fmean(timed):.2f}x" if timed else "")
