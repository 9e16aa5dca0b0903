"""docs/findings.md from the machine-readable results: every verdict first, then each claim with its numbers and its picture."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bard_core.evaluation.compare import standard_error
from bard_core.findings import growth, lengths, parity
from bard_core.findings.sharing import told_once
from bard_core.findings.spec import SELF_SPECULATION, Claim
from bard_core.report.pictures import series_png

Body = Mapping[str, Any]
HEAD = """# Findings

What was tried, and what came of it: several seeds, error bars, equal steps or equal training FLOPs. Written by `make findings`
from `benchmarks/results/findings/`; the claims are in `configs/findings/`.

```sh
make findings
```

On a cluster, a pod a piece: `pyflyte run --remote workflows/findings.py bard_findings --names '[]'`.

A verdict is by the paired difference over seeds: a candidate and its baseline share the seed, and with it the source model. The
interval is the wider of two at 95 %, Student's over seeds and the normal one over images. *confirmed*: all of it is above the
margin; *not*: all of it is below; else *inconclusive*. Accuracy is of whole answers, on validation images that share none with
training or evaluation, unless said; TPF is real tokens a forward, every forward after prefill counted; speed-up is over the
source's own decoding, in turn in one process. FLOPs are those of the conversion, the source's training left out. The lab is
small: a model of under a million parameters on generated images.
"""


def write_page(place: Path, folder: Path, claims: Sequence[Claim] = (), grown: Sequence[Body] = ()) -> Path:
    """Write ``folder/findings.md`` and ``folder/findings/*.png`` of all results at ``place``, in the order of their numbers.

    Those of ``claims`` that have no results are named as not run. ``grown``: what ``growth.read`` found.
    """
    known = [json.loads(path.read_text(encoding="utf-8")) for path in place.glob("*.json")]
    results = sorted(known, key=lambda body: (body["number"], body["claim"]))
    pictures = folder / "findings"
    pictures.mkdir(parents=True, exist_ok=True)
    rows = {(body["number"], body["claim"]): _verdict(body) for body in results}
    not_run = [claim for claim in claims if claim.name not in {body["claim"] for body in results}]
    rows |= {(claim.number, claim.name): f"| {claim.number} | {claim.question} | not run | – |" for claim in not_run}
    rows |= {(parity.NUMBER, parity.NAME): parity.verdict(results)} if results else {}
    rows |= {(growth.NUMBER, growth.NAME): growth.verdict(grown)} if grown else {}
    table = ["| | claim | verdict | number |\n| ---: | --- | --- | --- |", *(rows[number] for number in sorted(rows)), ""]
    parts = [HEAD, *table]
    for body in results:
        drawn = _series(body)
        if drawn:
            (pictures / f"{body['claim']}.png").write_bytes(series_png(drawn, "tokens a forward", "accuracy, %"))
        parts += _claim(body, bool(drawn))
    parts += growth.section(grown, pictures) if grown else ()
    target = folder / "findings.md"
    target.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    return target


def _verdict(body: Body) -> str:
    """A claim's row in the table of verdicts."""
    told = [one for one in body["comparisons"] if one["decides"] and one["verdict"] != "not run"]
    best = max(told, key=lambda one: one["mean"]) if told and body["rule"] == "any" else told[0] if told else None
    number = f"{_difference(best)}: {best['question']}" if best else "–"
    anchor = f"[{body['question']}](#{_anchor(body)})"
    return f"| {body['number']} | {anchor} | **{body['verdict']}**{_some_missing(body)} | {number} |"


def _anchor(body: Body) -> str:
    return f"{body['number']}-{body['claim']}".lower().replace(" ", "-")


def _some_missing(body: Body) -> str:
    lacking = sum(bool(variant["missing"]) for variant in body["variants"].values())
    return f" ({lacking} of {len(body['variants'])} variants not run whole)" if lacking else ""


def _difference(one: Body) -> str:
    unit, scale = (" points", 100) if one["metric"] == "accuracy" else ("", 1)
    if one["low"] is None:
        return f"{scale * one['mean']:+.1f}{unit} (one seed)"
    return f"{scale * one['mean']:+.1f}{unit} [{scale * one['low']:+.1f}, {scale * one['high']:+.1f}]"


def _claim(body: Body, has_picture: bool) -> Iterator[str]:
    yield f"## {body['number']} {body['claim']}\n"
    yield f"{body['question']} **{body['verdict']}**{_some_missing(body)}.\n"
    if body["notes"]:
        yield f"{body['notes'].strip()}\n"
    yield from _comparisons(body)
    if has_picture:
        yield f"![accuracy over tokens a forward](findings/{body['claim']}.png)\n"
    yield from _table(body)
    yield from parity.table(body)
    yield from lengths.table(body)
    if lost := {name: variant["missing"] for name, variant in body["variants"].items() if variant["missing"]}:
        yield "Not run whole: " + ", ".join(f"{name} ({_seeds_of(pieces)})" for name, pieces in lost.items()) + ".\n"
    machine = body["machine"]
    of_it = f"{machine['cpu']}, {machine['cores']} cores" + (f", {machine['gpu']}" if machine["gpu"] else "")
    digests = ", ".join(f"{name} `{variant['config_digest'][:12]}`" for name, variant in body["variants"].items())
    seeds = ", ".join(map(str, body["seeds"]))
    judged = f"{body['images'] or 'no'} {body['held_out']} images"
    yield f"`configs/{body['configuration']}.yaml`, seeds {seeds}, {judged}, commit `{body['commit'][:12]}`, {of_it},"
    yield f"torch {machine['torch']}. Configurations: {digests}.\n"


def _seeds_of(pieces: Sequence[str]) -> str:
    """The seeds that lack pieces, whose names end in their seed where they have one."""
    seeds = sorted({int(piece.rpartition(", seed ")[2]) for piece in pieces if ", seed " in piece})
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}" if seeds else "no data"


def _comparisons(body: Body) -> Iterator[str]:
    if not body["comparisons"]:
        return
    yield "| question | candidate | baseline | difference | equal | FLOPs | verdict |"
    yield "| --- | --- | --- | --- | --- | ---: | --- |"
    for one in body["comparisons"]:
        cells = [one["question"], _side(one["candidate"]), _side(one["baseline"])]
        if one["verdict"] == "not run":
            yield f"| {' | '.join(cells)} | – | {one['equal']} | – | not run |"
            continue
        mine, theirs = one["spent"]
        ratio = f"{mine['flops'] / theirs['flops']:.2f}x" if theirs["flops"] and mine["flops"] else "–"
        verdict = f"{one['verdict']}: {one['apart']}" if one["apart"] else one["verdict"]
        margin = "" if not one["margin"] else f" (margin {one['margin']:+g})"
        yield f"| {' | '.join(cells)} | {_difference(one)}{margin} | {one['equal']} | {ratio} | {verdict} |"
    yield ""


def _side(side: Body) -> str:
    point = "self-speculation" if side["threshold"] == SELF_SPECULATION else f"{side['threshold']:g}"
    return f"{side['variant']}, {side['model']}" + ("" if side["model"] == "source" else f" at {point}")


def _means(variant: Body) -> dict[tuple[str, str], dict[str, list[float]]]:
    """(model, point) -> metric -> a value a seed."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for seed in variant["seeds"].values():
        for model, points in seed["judged"].items():
            for point, numbers in points.items():
                for metric, value in numbers.items():
                    found.setdefault((model, point), {}).setdefault(metric, []).append(value)
    return found


def _table(body: Body) -> Iterator[str]:
    """A row a model and point; a model that variants share is told once."""
    yield "| variant | model | at | accuracy | TPF | speed-up | steps | TFLOP |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    names = told_once(body["variants"])
    for name, variant in body["variants"].items():
        for (model, point), numbers in _means(variant).items():
            if (name, model) not in names:
                continue
            spent = [seed["trained"][model] for seed in variant["seeds"].values() if model in seed["trained"]]
            steps, flops = (fmean(run[f"total_{kind}"] for run in spent) if spent else 0.0 for kind in ("steps", "flops"))
            accuracy, error = (100 * value for value in (fmean(numbers["accuracy"]), standard_error(numbers["accuracy"])))
            cost = f"{steps:.0f} | {flops / 1e12:.1f}" if steps else "– | –"
            spread = f" ± {error:.1f}" if len(numbers["accuracy"]) > 1 else ""
            yield (
                f"| {names[name, model]} | {model} | {point} | {accuracy:.1f}{spread} % "
                f"| {fmean(numbers['tokens_per_forward']):.2f} | {fmean(numbers['speedup']):.2f}x | {cost} |"
            )
    yield ""


def _series(body: Body) -> dict[str, list[tuple[float, float, float]]]:
    """Of every variant, the points of its last model, of a lone one those of each: (TPF, accuracy in per cent, its error)."""
    drawn = {}
    for name, variant in body["variants"].items():
        means = _means(variant)
        models = list(dict.fromkeys(model for model, _ in means if model != "source"))
        for model in models if len(body["variants"]) == 1 else models[-1:]:
            drawn[f"{name}, {model}"] = [
                (
                    fmean(numbers["tokens_per_forward"]),
                    100 * fmean(numbers["accuracy"]),
                    100 * standard_error(numbers["accuracy"]),
                )
                for (one, _), numbers in means.items()
                if one == model
            ]
    return drawn
