"""The data card: what is in a prepared dataset, and what is not and why; as JSON, as a page, as lines for a terminal."""

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bard_core.data.images import open_image
from bard_core.data.index import EVAL, TRAIN
from bard_core.data.merge import Merged, left_out
from bard_core.data.sources import HUB, Shard

EXAMPLES, THUMBNAIL_PX, TEXT_CHARACTERS = 6, 160, 400


def build_card(shards: Sequence[Shard], facts: Sequence[dict[str, Any]], merged: Merged) -> dict[str, Any]:
    """The card as plain values: no clock, no local path. ``facts``: each shard's ``unit.json``."""
    numbers = _Numbers(merged.columns)
    out = left_out(merged.columns)
    names = list(dict.fromkeys(shard.source.name for shard in shards))
    sources = {name: _source(name, shards, facts, numbers, out.get(name, {})) for name in names}
    return {
        "samples": {side: int(numbers.kept(split).sum()) for side, split in (("train", TRAIN), ("eval", EVAL))},
        "refused": _total(source["refused"] for source in sources.values()),
        "dropped_parts": _total(source["dropped_parts"] for source in sources.values()),
        "left_out": _total(source["left_out"] for source in sources.values()),
        "images_that_look_alike": merged.pairs,
        "lengths": {side: numbers.lengths(numbers.kept(split)) for side, split in (("train", TRAIN), ("eval", EVAL))},
        "sources": sources,
        "examples": [example for fact in facts for example in fact["examples"]][:: max(1, len(facts) // EXAMPLES)][:EXAMPLES],
    }


def _source(
    name: str, shards: Sequence[Shard], facts: Sequence[dict[str, Any]], numbers: "_Numbers", out: dict[str, int]
) -> dict[str, Any]:
    mine = [(shard, fact) for shard, fact in zip(shards, facts, strict=True) if shard.source.name == name]
    source, revision = mine[0][0].source, mine[0][0].revision
    of_source = numbers.source == name
    return {
        "schema": source.schema_name,
        "license": source.license or "not given",
        "origin": f"{source.uri} at {revision}" if source.uri.startswith(HUB) else "",
        "weight": source.weight,
        "shards": len(mine),
        "rows": sum(fact["rows"] for _, fact in mine),
        "train": int((of_source & numbers.kept(TRAIN)).sum()),
        "eval": int((of_source & numbers.kept(EVAL)).sum()),
        "places_in_an_epoch": int(numbers.repeat[of_source & numbers.kept(TRAIN)].sum()),
        "cut_at_a_turn": sum(fact["cut_at_a_turn"] for _, fact in mine),
        "refused": _total(fact["refused"] for _, fact in mine),
        "dropped_parts": _total(fact["dropped"] for _, fact in mine),
        "left_out": out,
        "damaged": {shard.name: fact["damaged"] for shard, fact in mine if fact["damaged"]},
        "tokens": numbers.lengths(of_source & numbers.kept(TRAIN))["tokens"],
    }


def _total(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


class _Numbers:
    """The merged columns as numpy."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.split, self.keep, self.repeat = (
            columns[name].to_numpy(zero_copy_only=False) for name in ("split", "keep", "repeat")
        )
        self.tokens, self.visual = (columns[name].to_numpy() for name in ("tokens", "visual_tokens"))
        turns = columns["turn_lengths"].combine_chunks()
        counts = turns.value_lengths().to_numpy(zero_copy_only=False)
        owner = np.repeat(np.arange(len(counts)), counts)
        self.supervised = np.bincount(owner, weights=turns.flatten().to_numpy(), minlength=len(counts)).astype(np.int64)
        names = columns["source"]
        self.source = np.array(names.dictionary.to_pylist() or [""], object)[names.indices.to_numpy()]

    def kept(self, split: int) -> Any:
        return self.keep & (self.split == split)

    def lengths(self, rows: Any) -> dict[str, Any]:
        measures = {"tokens": self.tokens, "visual_tokens": self.visual, "supervised_tokens": self.supervised}
        return {name: _lengths(values[rows]) for name, values in measures.items()}


def _lengths(tokens: Any) -> dict[str, Any]:
    """Sum, extremes, quantiles and a histogram over powers of two (key: inclusive upper bound, in tokens)."""
    if not len(tokens):
        return {"total": 0, "histogram": {}}
    exponents = np.ceil(np.log2(np.maximum(tokens, 1))).astype(int)
    histogram = {str(2**exponent): int(count) for exponent, count in enumerate(np.bincount(exponents)) if count}
    quantiles = {f"p{percent}": int(np.percentile(tokens, percent)) for percent in (50, 90, 99)}
    extremes = {"min": int(tokens.min()), "mean": round(float(tokens.mean()), 2), "max": int(tokens.max())}
    return {"total": int(tokens.sum(dtype=np.int64)), **extremes, **quantiles, "histogram": histogram}


def example(messages: list[dict[str, Any]], images: Sequence[bytes]) -> dict[str, Any]:
    """A sample to show: its texts, shortened, and small pictures."""
    texts = [
        [message["role"], " ".join(item.get("text", f"[{item['type']}]") for item in message["content"])]
        for message in messages[:3]
    ]
    return {
        "texts": [[role, text[:TEXT_CHARACTERS]] for role, text in texts],
        "pictures": [_thumbnail(data) for data in images[:2]],
    }


def _thumbnail(data: bytes) -> str:
    picture = open_image(data)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def summary(card: dict[str, Any]) -> str:
    """A line a source, saying what was lost."""
    lines = []
    for name, source in card["sources"].items():
        kept = source["train"] + source["eval"]
        lost = {**source["refused"], **source["left_out"]}
        reasons = "; ".join(f"{count}: {reason}" for reason, count in sorted(lost.items(), key=lambda item: -item[1]))
        damaged = "".join(f"; shard {shard} refused: {why}" for shard, why in source["damaged"].items())
        parts = "".join(f"; {count} parts dropped: {reason}" for reason, count in source["dropped_parts"].items())
        lines.append(f"{name}: kept {kept} of {source['rows']}" + (f"; {reasons}" if reasons else "") + parts + damaged)
    alike = {name: count for name, count in card["images_that_look_alike"].items() if count}
    if alike:
        lines.append(
            "images of the training side that look like others: " + ", ".join(f"{n} {name}" for name, n in alike.items())
        )
    return "\n".join(lines)


def metrics(card: dict[str, Any]) -> dict[str, float]:
    """The numbers to compare over time."""
    rows = sum(source["rows"] for source in card["sources"].values())
    return {
        "num_train": card["samples"]["train"],
        "num_eval": card["samples"]["eval"],
        "rows_read": rows,
        "rows_refused": sum(card["refused"].values()),
        "rows_left_out": sum(card["left_out"].values()),
        "parts_dropped": sum(card["dropped_parts"].values()),
        "shards_damaged": sum(len(source["damaged"]) for source in card["sources"].values()),
        "train_tokens": card["lengths"]["train"]["tokens"]["total"],
        "images_that_look_alike": sum(card["images_that_look_alike"].values()),
    }


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}.n{text-align:right}"
    ".bar{display:inline-block;height:.8em;background:#4a78b5}figure{display:inline-block;margin:1em;vertical-align:top;width:20em}"
)


def page(card: dict[str, Any]) -> str:
    """The card as one HTML page."""
    rows = [
        [name, source["license"], source["origin"], source["rows"], source["train"], source["eval"], source["weight"]]
        for name, source in card["sources"].items()
    ]
    lost = [
        [name, what, reason, count]
        for name, source in card["sources"].items()
        for what, counts in (
            ("refused", source["refused"]),
            ("left out", source["left_out"]),
            ("dropped", source["dropped_parts"]),
        )
        for reason, count in counts.items()
    ] + [[name, "shard", shard, why] for name, source in card["sources"].items() for shard, why in source["damaged"].items()]
    alike = [[name, count] for name, count in card["images_that_look_alike"].items()]
    parts = [
        f"<h1>Data card</h1><p>{card['samples']['train']:,} training samples, {card['samples']['eval']:,} held out.</p>",
        "<h2>Sources</h2>" + _table(["source", "licence", "origin", "rows", "train", "held out", "weight"], rows),
        "<h2>Not in it</h2>" + _table(["source", "what", "reason", "count"], lost),
        "<h2>Training images that look like others</h2>" + _table(["like", "pairs"], alike),
        *(f"<h2>{name.replace('_', ' ').capitalize()}</h2>{_bars(body)}" for name, body in card["lengths"]["train"].items()),
        "<h2>Examples</h2>" + "".join(_figure(item) for item in card["examples"]),
    ]
    return f'<!doctype html><meta charset="utf-8"><title>Data card</title><style>{_STYLE}</style>{"".join(parts)}\n'


def _table(head: list[str], rows: list[list[Any]]) -> str:
    def cell(value: Any) -> str:
        number = isinstance(value, int | float)
        return f'<td class="n">{value:,}</td>' if number else f"<td>{html.escape(str(value))}</td>"

    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{body}</table>" if rows else "<p>None.</p>"


def _bars(lengths: dict[str, Any]) -> str:
    if not lengths["total"]:
        return "<p>None.</p>"
    most = max(lengths["histogram"].values())
    bars = "".join(
        f'<tr><td class="n">≤ {bound}<td><span class="bar" style="width:{20 * count / most:.2f}em"></span> {count:,}</tr>'
        for bound, count in lengths["histogram"].items()
    )
    return f"<p>{lengths['total']:,} in all; mean {lengths['mean']}, p99 {lengths['p99']}</p><table>{bars}</table>"


def _figure(item: dict[str, Any]) -> str:
    pictures = "".join(f'<img alt="" src="data:image/jpeg;base64,{data}">' for data in item["pictures"])
    texts = "".join(f"<p><b>{role}</b> {html.escape(text)}</p>" for role, text in item["texts"])
    return f"<figure>{pictures}{texts}</figure>"
