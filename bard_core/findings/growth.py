"""How costs grow, for the page: what bench-growth and bench-serve measured, as a table, and as curves with fitted exponents."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bard_core.report.pictures import series_png

Body = Mapping[str, Any]
NUMBER, NAME = 8, "growth"
QUESTION = "How do a training step and decoding grow with prefix, answer, block size, batch and concurrency?"


def read(folder: Path) -> list[Body]:
    """The growth-<machine>.json of a folder, each with its serve-<machine>.json under ``serving`` where that is."""
    found: list[Body] = []
    for path in sorted(folder.glob("growth-*.json")):
        body = json.loads(path.read_text(encoding="utf-8"))
        served = path.with_name(path.name.replace("growth", "serve", 1))
        found.append({**body, "serving": json.loads(served.read_text(encoding="utf-8")) if served.is_file() else None})
    return found


def verdict(bodies: Sequence[Body]) -> str:
    """Its row in the table of verdicts: the exponents over the prefix, of the last step."""
    over_prefix = [curve for curve in bodies[0]["curves"] if curve["over"] == "prefix"]
    told = ", ".join(f"{curve['of']} {curve['last']:.2f} in the prefix" for curve in over_prefix)
    return f"| {NUMBER} | [{QUESTION}](#{NUMBER}-{NAME}) | measured | exponents: {told} |"


def section(bodies: Sequence[Body], pictures: Path) -> Iterator[str]:
    """Markdown: a row a curve; the picture is written into ``pictures``."""
    yield f"## {NUMBER} {NAME}\n"
    yield f"{QUESTION} Cost is as size to the power of the exponent: 1 is linear, 0 is free.\n"
    yield "Measured by `make bench-growth` and `make bench-serve`.\n"
    for number, body in enumerate(bodies):
        picture = f"{NAME}.png" if not number else f"{NAME}-{number + 1}.png"
        (pictures / picture).write_bytes(series_png(_series(body), "times the smallest size", "times its cost", logarithmic=True))
        yield f"![cost over size, both as multiples of the smallest](findings/{picture})\n"
        yield "| cost | over | sizes | milliseconds | exponent | of the last step |"
        yield "| --- | --- | --- | --- | ---: | ---: |"
        for curve in body["curves"]:
            sizes, costs = (" / ".join(f"{value:.0f}" for value in values) for values in (curve["sizes"], _ms(curve)))
            yield f"| {curve['of']} | {curve['over']} | {sizes} | {costs} | {curve['exponent']:.2f} | {curve['last']:.2f} |"
        yield ""
        base = ", ".join(f"{name} {size}" for name, size in body["base"].items())
        shape = body["shape"]
        yield f"One size at a time, the others at {base}; a model of {shape['layers']} layers of {shape['hidden']}."
        machine = body["machine"]
        yield f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}.\n"
        if body["serving"]:
            yield from _served(body["serving"])


def _served(serving: Body) -> Iterator[str]:
    levels = serving["levels"]
    modes = [name for name, value in levels[0].items() if isinstance(value, Mapping)]
    yield f"Tokens a second of the server by clients at once, {serving['new_tokens']} new tokens each:\n"
    yield f"| clients | {' | '.join(modes)} |"
    yield "| ---: |" + " ---: |" * len(modes)
    for level in levels:
        yield f"| {level['clients']} | " + " | ".join(f"{level[mode]['tokens_per_s']:.0f}" for mode in modes) + " |"
    yield ""


def _ms(curve: Body) -> list[float]:
    return [1000 * seconds for seconds in curve["seconds"]]


def _series(body: Body) -> dict[str, list[tuple[float, float, float]]]:
    """Size and cost as multiples of the smallest's."""
    return {
        f"{curve['of']} over {curve['over']}, {curve['exponent']:.2f}": [
            (size / curve["sizes"][0], cost / curve["seconds"][0], 0.0)
            for size, cost in zip(curve["sizes"], curve["seconds"], strict=True)
        ]
        for curve in body["curves"]
    }
