"""The merge: the entries of all units become one index. No sample is moved; what is decided here is a column.

In this order, each row going to the first that applies: images on both sides of the split; an image like one of a benchmark's; an
image that is held out, or looks like one that is; the same as an earlier sample, exactly or by its looks; left out by a weight.
Hashes decide, so the result depends on the rows and the seed alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bard_core.config.sources import RawSource
from bard_core.data.images import LOOK_BYTES
from bard_core.data.index import EVAL, HASH_BYTES, TRAIN
from bard_core.data.likeness import ALIKE, alike, differing

BOTH_SIDES = "images on both sides of the split"
HELD_OUT = "shows a held-out image"
LIKE_HELD_OUT = "image looks like a held-out one"
DUPLICATE, NEAR_DUPLICATE = "duplicate", "near duplicate"
BY_WEIGHT = "left out by the source's weight"
SMALL_GROUP = 1024  # same text: so many images are compared all with all, more by bands


@dataclass(frozen=True)
class Merged:
    """The index's columns, and how many pairs of images of both sides, or of ours and a benchmark's, look alike."""

    columns: dict[str, Any]
    pairs: dict[str, int]


def merge(
    entries: Sequence[tuple[RawSource, Any]], *, seed: int, eval_fraction: float, benchmarks: Mapping[str, Any] | None = None
) -> Merged:
    """Merge the entry tables (``records.entries_schema``) of units, in the units' order.

    Args:
        entries: each unit's source and table. benchmarks: name -> looks [n, LOOK_BYTES] of the images that it asks about.
    """
    import pyarrow as pa

    sizes = [table.num_rows for _, table in entries]
    table = pa.concat_tables([table for _, table in entries]).combine_chunks()
    rows = _Rows(table, np.repeat(np.arange(len(sizes)), sizes), [source for source, _ in entries])
    split, both = rows.split(seed, eval_fraction)
    reasons = _Reasons(table.num_rows)
    reasons.add(both, BOTH_SIDES)
    pairs: dict[str, int] = {}
    for name, looks in sorted((benchmarks or {}).items()):
        owners, pairs[name] = rows.like(looks, (split == TRAIN) & reasons.free)
        reasons.add(owners, f"image looks like one of {name}")
    held = (split == EVAL) & reasons.free
    reasons.add((split == TRAIN) & rows.showing(held), HELD_OUT)
    owners, pairs["held out"] = rows.like(rows.looks_of(held), (split == TRAIN) & reasons.free)
    reasons.add(owners, LIKE_HELD_OUT)
    reasons.add(rows.repeated(reasons.free & rows.chosen()), DUPLICATE)
    reasons.add(rows.nearly_repeated(reasons.free & rows.chosen()), NEAR_DUPLICATE)
    repeat = rows.repeats(seed, split)
    reasons.add(repeat == 0, BY_WEIGHT)
    columns = {
        "id": table["id"],
        "unit": pa.array(rows.unit.astype(np.int32)),
        "row": pa.array(np.concatenate([np.arange(size, dtype=np.int32) for size in sizes] or [np.empty(0, np.int32)])),
        "source": pa.DictionaryArray.from_arrays(pa.array(rows.unit.astype(np.int32)), [source.name for source, _ in entries]),
        "split": pa.array(split.astype(np.int8)),
        "keep": pa.array(reasons.free),
        "reason": pa.DictionaryArray.from_arrays(pa.array(reasons.number.astype(np.int32)), reasons.names),
        "repeat": pa.array(np.where(reasons.free, repeat, 0).astype(np.int16)),
        **{name: table[name] for name in ("tokens", "visual_tokens", "turn_lengths", "image_hashes")},
    }
    return Merged(columns, pairs)


class _Reasons:
    """Why each row is not kept: the number of the first reason given; 0 is none."""

    def __init__(self, count: int) -> None:
        self.names = [""]
        self.number = np.zeros(count, np.int64)

    @property
    def free(self) -> Any:
        return self.number == 0

    def add(self, rows: Any, reason: str) -> None:
        self.names.append(reason)
        self.number[rows & self.free] = len(self.names) - 1


class _Rows:
    """The merge's view of all samples: numbers only. ``owner[k]`` is the sample that shows image k."""

    def __init__(self, table: Any, unit: Any, sources: list[RawSource]) -> None:
        self.unit, self.sources = unit, sources
        self.images, self.owner = _flat(table["image_hashes"], HASH_BYTES)
        self.image = self.images[:, :8].copy().view(np.uint64).reshape(-1)
        self.looks, _ = _flat(table["looks"], LOOK_BYTES)
        self.has_look = _valid(table["looks"])
        self.text = _bytes_of(_one(table["text"]), HASH_BYTES)[:, :8].copy().view(np.uint64).reshape(-1)
        self.count = np.bincount(self.owner, minlength=len(self.text))
        place = np.arange(len(self.owner)) - (np.cumsum(self.count) - self.count)[self.owner]
        self.key = self.text.copy()
        np.add.at(self.key, self.owner, _mixed(self.image ^ _mixed(place.astype(np.uint64))))

    def split(self, seed: int, eval_fraction: float) -> tuple[Any, Any]:
        """(side, and whether images stand on both) of each row: its source's, else that of its images, else of its text."""
        declared = np.array([{"train": TRAIN, "eval": EVAL, None: -1}[source.split] for source in self.sources] or [-1])[
            self.unit
        ]
        limit = eval_fraction * 2.0**64
        salt = _mixed(np.array([seed], np.uint64))
        shown = np.bincount(self.owner, weights=_mixed(self.image ^ salt) < limit, minlength=len(self.text))
        drawn = np.where(self.count > 0, shown > 0, _mixed(self.text ^ salt) < limit)
        both = (declared < 0) & (shown > 0) & (shown < self.count)
        return np.where(declared >= 0, declared, np.where(drawn, EVAL, TRAIN)), both

    def _any(self, images: Any) -> Any:
        """Rows that show one of the marked images."""
        return np.bincount(self.owner, weights=images, minlength=len(self.text)) > 0

    def showing(self, rows: Any) -> Any:
        """Rows that show an image, byte for byte, that one of ``rows`` shows."""
        return self._any(np.isin(self.image, np.unique(self.image[rows[self.owner]])))

    def looks_of(self, rows: Any) -> Any:
        return self.looks[self.has_look & rows[self.owner]]

    def like(self, looks: Any, rows: Any) -> tuple[Any, int]:
        """Those of ``rows`` with an image like one of ``looks``, and the number of pairs."""
        mine = np.flatnonzero(self.has_look & rows[self.owner])
        pairs = alike(self.looks[mine], looks)
        found = np.zeros(len(self.owner), bool)
        found[mine[pairs[:, 0]]] = True
        return self._any(found), len(pairs)

    def chosen(self) -> Any:
        """Rows whose source does not declare them held out: a test set is left as its authors made it."""
        return np.array([source.split != "eval" for source in self.sources] or [True])[self.unit]

    def repeated(self, rows: Any) -> Any:
        """Rows with the images and the text of an earlier one."""
        places = np.flatnonzero(rows)
        order = places[np.argsort(self.key[places], kind="stable")]
        again = np.zeros(len(self.text), bool)
        again[order[1:][self.key[order[1:]] == self.key[order[:-1]]]] = True
        return again

    def nearly_repeated(self, rows: Any) -> Any:
        """Rows with the text of an earlier one, whose images look like that one's."""
        with_look = np.bincount(self.owner, weights=self.has_look, minlength=len(self.text))
        places = np.flatnonzero(rows & (self.count > 0) & (with_look == self.count))
        order = places[np.argsort(self.text[places], kind="stable")]
        starts = np.flatnonzero(self.text[order[1:]] != self.text[order[:-1]]) + 1
        again = np.zeros(len(self.text), bool)
        first = np.cumsum(self.count) - self.count
        for group in np.split(order, starts):
            if len(group) < 2:
                continue
            earlier: dict[int, list[int]] = {}
            for i, j in _alike_within(self.looks[first[group]]):
                earlier.setdefault(i, []).append(j)
            for i, those in sorted(earlier.items()):
                again[group[i]] = any(not again[group[j]] and self._alike(group[i], group[j]) for j in those)
        return again

    def _alike(self, row: int, other: int) -> bool:
        """As many images, each looking like the other's."""
        mine, theirs = self._look_list(row), self._look_list(other)
        return len(mine) == len(theirs) and bool((differing(mine, theirs) <= ALIKE).all())

    def _look_list(self, row: int) -> Any:
        end = int(np.searchsorted(self.owner, row, side="right"))
        return self.looks[end - int(self.count[row]) : end]

    def repeats(self, seed: int, split: Any) -> Any:
        """How often each row occurs in an epoch: a whole number by chance, so that the mean is its source's weight."""
        weight = np.array([source.weight for source in self.sources] or [1.0])[self.unit]
        chance = _mixed(self.key ^ _mixed(np.array([seed + 1], np.uint64))) / 2.0**64
        return np.where(split == EVAL, 1, np.floor(weight) + (chance < weight % 1.0))


def _alike_within(looks: Any) -> list[tuple[int, int]]:
    """Pairs (i, j), j < i, that look alike."""
    if len(looks) > SMALL_GROUP:
        return [(i, j) for i, j in alike(looks, looks).tolist() if j < i]
    i, j = np.nonzero(np.tril(differing(looks[:, None], looks[None]) <= ALIKE, k=-1))
    return list(zip(i.tolist(), j.tolist(), strict=True))


def _mixed(values: Any) -> Any:
    """The finalizer of splitmix64: near values far apart, every bit of use."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def _one(column: Any) -> Any:
    chunked = column.combine_chunks()
    return chunked.chunk(0) if hasattr(chunked, "chunk") and chunked.num_chunks else chunked


def _bytes_of(array: Any, width: int) -> Any:
    if not len(array):
        return np.empty((0, width), np.uint8)
    return np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width].reshape(
        -1, width
    )


def _flat(column: Any, width: int) -> tuple[Any, Any]:
    """Values [n, width] of a column of lists, and the row that each belongs to."""
    lists = _one(column)
    counts = lists.value_lengths().to_numpy(zero_copy_only=False)
    return _bytes_of(lists.flatten(), width), np.repeat(np.arange(len(counts)), counts)


def _valid(column: Any) -> Any:
    return _one(column).flatten().is_valid().to_numpy(zero_copy_only=False)


def left_out(columns: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Source -> reason -> rows that the merge left out."""
    import pyarrow as pa

    table = pa.table({name: columns[name].cast(pa.string()) for name in ("source", "reason")})
    found: dict[str, dict[str, int]] = {}
    for row in sorted(table.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist(), key=str):
        if row["reason"]:
            found.setdefault(row["source"], {})[row["reason"]] = row["count_all"]
    return found
