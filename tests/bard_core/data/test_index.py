"""The index: what is written is what is read, as views of the file; lengths of layouts are those that the layout has."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bard_core.data import index
from bard_core.data.index import Index, Unit
from bard_core.diffusion.layout import sample_layout


def columns(turns: list[list[int]], **others: object) -> dict[str, object]:
    count = len(turns)
    rows = {
        "id": [f"s/{i}" for i in range(count)],
        "unit": [0] * count,
        "row": list(range(count)),
        "source": ["s"] * count,
        "split": [0] * count,
        "keep": [True] * count,
        "reason": [""] * count,
        "tokens": [10 + sum(lengths) for lengths in turns],
        "visual_tokens": [4] * count,
        "turn_lengths": turns,
        "image_hashes": [[bytes(16)]] * count,
        "repeat": [1] * count,
    } | others
    import pyarrow as pa

    return {name: pa.array(values, index.schema().field(name).type) for name, values in rows.items()}  # type: ignore[arg-type]


def written(folder: Path, values: dict[str, object]) -> Index:
    folder.mkdir(exist_ok=True)
    index.write(folder / index.FILE, values)
    (folder / index.UNITS_FILE).write_text(json.dumps([{"name": "s-0", "manifest_sha256": "0" * 64, "rows": 4, "bytes": 9}]))
    return Index.open(folder)


def test_kept_samples_of_each_side_are_found(tmp_path: Path) -> None:
    found = written(tmp_path, columns([[3]] * 4, split=[0, 1, 0, 1], keep=[True, True, False, True], repeat=[2, 1, 1, 1]))
    assert len(found) == 4 and found.units == (Unit("s-0", "0" * 64, 4, 9),)
    assert found.train.tolist() == [0] and found.eval.tolist() == [1, 3]
    assert found.repeat.tolist() == [2, 1, 1, 1] and found.table["id"].to_pylist() == ["s/0", "s/1", "s/2", "s/3"]
    assert not found.tokens.flags.owndata  # a view of the mapped file


def test_several_batches_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = columns([[n, n + 1] for n in range(1, 8)], split=[0, 1] * 3 + [0])
    whole = written(tmp_path / "whole", values)
    monkeypatch.setattr(index, "ROWS_PER_BATCH", 3)
    parts = written(tmp_path / "parts", values)
    assert len(parts.table.column("tokens").chunks) == 3
    for name in ("tokens", "unit", "row", "train", "eval"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    assert np.array_equal(whole.laid_out(4, 2), parts.laid_out(4, 2))


@settings(max_examples=30, deadline=None)
@given(
    turns=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=5),
    block=st.integers(1, 9),
    copies=st.integers(0, 2),
)
def test_lengths_are_those_of_the_layout(
    tmp_path_factory: pytest.TempPathFactory, turns: list[list[int]], block: int, copies: int
) -> None:
    found = written(tmp_path_factory.mktemp("index"), columns(turns))
    for lengths, laid_out in zip(turns, found.laid_out(block, copies), strict=True):
        ends = (torch.tensor(lengths) + 1).cumsum(0).tolist()  # one token between turns
        spans = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        clean = 10 + sum(lengths)
        assert laid_out == clean + copies * sample_layout(clean, spans, block).source_R.numel()
    assert found.laid_out(None, 2).tolist() == found.tokens.tolist()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Run the prepare stage"):
        Index.open(tmp_path)
    with pytest.raises(ValueError, match="lacks the columns id, "):
        index.write(tmp_path / index.FILE, {"unit": []})
