"""The merge: sides, leaks, duplicates, weights; each row goes to the first reason that applies, and no sample is moved."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bard_core.config.sources import RawSource
from bard_core.data.images import LOOK_BYTES
from bard_core.data.index import EVAL, TRAIN
from bard_core.data.merge import left_out, merge
from bard_core.data.records import entries_schema


def source(name: str = "s", **options: Any) -> RawSource:
    return RawSource(name=name, schema_name="finevision", uri="/raw", **options)


def hashed(value: Any) -> bytes:
    return hashlib.blake2b(str(value).encode(), digest_size=16).digest()


def look(seed: int, *flipped: int) -> bytes:
    bits = np.random.default_rng(seed).integers(0, 2, 8 * LOOK_BYTES)
    bits[list(flipped)] ^= 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def entry(text: Any, *images: Any, looks: tuple[bytes | None, ...] | None = None) -> dict[str, Any]:
    return {
        "id": f"{text}-{images}",
        "tokens": 10,
        "visual_tokens": 4,
        "turn_lengths": [3],
        "image_hashes": [hashed(image) for image in images],
        "looks": list(looks or [None] * len(images)),
        "text": hashed(text),
    }


def merged(*units: tuple[RawSource, list[dict[str, Any]]], eval_fraction: float = 0.0, **options: Any) -> Any:
    tables = [(of, pa.Table.from_pylist(rows, entries_schema())) for of, rows in units]
    return merge(tables, **{"seed": 0, "eval_fraction": eval_fraction, **options})


def reasons(found: Any) -> list[str]:
    return [str(reason) for reason in found.columns["reason"].to_pylist()]


def test_rows_keep_their_place_and_their_source() -> None:
    found = merged((source("a"), [entry(1), entry(2)]), (source("b"), []), (source("c"), [entry(3)]))
    assert found.columns["unit"].to_pylist() == [0, 0, 2] and found.columns["row"].to_pylist() == [0, 1, 0]
    assert found.columns["source"].to_pylist() == ["a", "a", "c"] and found.columns["keep"].to_pylist() == [True] * 3


def test_duplicates_are_the_same_images_and_the_same_text() -> None:
    rows = [entry("q", "x", "y"), entry("q", "y", "x"), entry("q", "x", "y"), entry("p", "x", "y"), entry("q"), entry("q")]
    found = merged((source(), rows), (source("t"), rows[:1]))
    assert reasons(found) == ["", "", "duplicate", "", "", "duplicate", "duplicate"]
    assert left_out(found.columns) == {"s": {"duplicate": 2}, "t": {"duplicate": 1}}


def test_near_duplicates_are_the_same_text_over_images_that_look_alike() -> None:
    rows = [
        entry("q", "png", looks=(look(0),)),
        entry("q", "jpeg", looks=(look(0, 3, 99),)),
        entry("p", "jpeg", looks=(look(0, 3, 99),)),  # another question
        entry("q", "other", looks=(look(1),)),
        entry("q", "plain", looks=(None,)),
        entry("r", "a", "b", looks=(look(2), look(3))),
        entry("r", "c", "d", looks=(look(2, 1), look(3, 1))),
        entry("r", "e", "f", looks=(look(2), look(4))),
    ]
    assert reasons(merged((source(), rows))) == ["", "near duplicate", "", "", "", "", "near duplicate", ""]


def test_many_of_one_text_are_compared_by_bands_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [entry("q", i, looks=(look(i % 7, *range(i % 3)),)) for i in range(30)]
    few = reasons(merged((source(), rows)))
    monkeypatch.setattr("bard_core.data.merge.SMALL_GROUP", 2)
    assert reasons(merged((source(), rows))) == few and few.count("near duplicate") == 23


def test_images_decide_the_side_and_a_row_with_both_is_left_out() -> None:
    rows = [entry(f"{i}{n}", i) for i in range(400) for n in range(2)] + [entry("both", *range(400))]
    found = merged((source(), rows), eval_fraction=0.25)
    sides = found.columns["split"].to_pylist()
    assert sides[0:800:2] == sides[1:800:2] and 60 < sum(sides[0:800:2]) < 140
    assert reasons(found) == [""] * 800 + ["images on both sides of the split"]
    assert merged((source(), rows), eval_fraction=0.25, seed=1).columns["split"].to_pylist() != sides
    texts = merged((source(), [entry(i) for i in range(400)]), eval_fraction=0.25).columns["split"].to_pylist()
    assert 60 < sum(texts) < 140  # text-only rows go by their text


def test_what_is_held_out_or_looks_like_it_is_not_trained_on() -> None:
    held = [entry("q1", "same", looks=(look(0),)), entry("q2", "png", looks=(look(1),)), entry("q2", "png", looks=(look(1),))]
    mine = [
        entry("a", "same", looks=(look(9),)),
        entry("b", "jpeg", looks=(look(1, 5, 6),)),
        entry("c", "free", looks=(look(2),)),
    ]
    found = merged((source("t", split="train"), mine), (source("e", split="eval"), held))
    assert reasons(found) == ["shows a held-out image", "image looks like a held-out one", "", "", "", ""]
    assert found.columns["split"].to_pylist() == [TRAIN] * 3 + [EVAL] * 3  # a given test set keeps its repetitions
    assert found.pairs == {"held out": 2}


def test_a_hundred_pictures_in_two_formats_never_straddle_the_split() -> None:
    rows = [
        entry(f"{i}{kind}", f"{i}{kind}", looks=(look(i, *flips),))
        for i in range(100)
        for kind, flips in (("p", ()), ("j", (7, 8)))
    ]
    found = merged((source(), rows), eval_fraction=0.3)
    sides, kept = found.columns["split"].to_pylist(), found.columns["keep"].to_pylist()
    pairs = [(sides[i], sides[i + 1]) for i in range(0, 200, 2)]
    straddling = sum(one != other for one, other in pairs)
    assert straddling > 20 and found.pairs == {"held out": straddling}
    assert all(kept[2 * i] != kept[2 * i + 1] for i, (one, other) in enumerate(pairs) if one != other)
    assert sum(kept) == 200 - straddling
    apart = merged((source("p", split="train"), rows[::2]), (source("j", split="eval"), rows[1::2]))
    assert apart.pairs == {"held out": 100} and sum(apart.columns["keep"].to_pylist()) == 100


def test_benchmark_images_are_kept_out() -> None:
    rows = [entry(i, i, looks=(look(i),)) for i in range(5)]
    asked = np.frombuffer(look(3, 1, 2) + look(77), np.uint8).reshape(-1, LOOK_BYTES)
    found = merged((source(), rows), benchmarks={"paper/chartqa": asked})
    assert reasons(found) == ["", "", "", "image looks like one of paper/chartqa", ""]
    assert found.pairs == {"paper/chartqa": 1, "held out": 0}


def test_weights_are_places_in_an_epoch() -> None:
    rows = [entry(i) for i in range(2000)]
    for weight, values in ((1.0, {1}), (2.0, {2}), (2.5, {2, 3}), (0.5, {0, 1})):
        found = merged((source(weight=weight), rows))
        repeat = np.array(found.columns["repeat"].to_pylist())
        assert set(repeat) == values and abs(repeat.mean() - weight) < 0.05
        assert (repeat > 0).tolist() == found.columns["keep"].to_pylist()
        assert reasons(found).count("left out by the source's weight") == int((repeat == 0).sum())


def test_an_empty_merge_is_an_index_without_rows() -> None:
    assert merged((source(), [])).columns["keep"].to_pylist() == []
