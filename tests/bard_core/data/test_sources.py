"""Streaming raw shards through fsspec: order, ids, limits, and errors that say what to do."""

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bard_core.config.sources import RawSource
from bard_core.data.sources import SourceError, read_rows


def write(folder: Path, shards: dict[str, list[int]]) -> None:
    for name, values in shards.items():
        rows = [{"texts": [{"user": f"q{value}", "assistant": "a"}], "unused": 1} for value in values]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / name)


def source(uri: str, max_samples: int | None = None) -> RawSource:
    return RawSource(name="raw", schema_name="finevision", uri=uri, max_samples=max_samples)


def test_rows_come_in_shard_order_with_stable_ids(tmp_path: Path) -> None:
    write(tmp_path, {"b.parquet": [2, 3, 4], "a/0.parquet": [0, 1]})
    rows = list(read_rows(source(str(tmp_path))))
    assert [row.id for row in rows] == ["raw/a/0/0", "raw/a/0/1", "raw/b/0", "raw/b/1", "raw/b/2"]
    assert [row.values["texts"][0]["user"] for row in rows] == ["q0", "q1", "q2", "q3", "q4"]
    assert all(row.values.keys() == {"texts"} for row in rows)  # columns nobody needs are not read
    progress = [row.progress for row in rows]
    assert progress == sorted(progress) and progress[-1] == 1.0
    assert [row.id for row in read_rows(source(str(tmp_path), 3))] == [row.id for row in rows[:3]]


def test_any_fsspec_store_serves(tmp_path: Path) -> None:
    write(tmp_path, {"0.parquet": [5]})
    fsspec.filesystem("memory").pipe("/bard-raw/0.parquet", (tmp_path / "0.parquet").read_bytes())
    assert [row.id for row in read_rows(source("memory://bard-raw"))] == ["raw/0/0"]


def test_errors_name_the_source_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'raw': no \*.parquet under .*hf://datasets"):
        list(read_rows(source(str(tmp_path))))
    pq.write_table(pa.table({"question": ["q"]}), tmp_path / "0.parquet")
    with pytest.raises(SourceError, match=r"no column texts of schema finevision .found question."):
        list(read_rows(source(str(tmp_path))))
    (tmp_path / "0.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(SourceError, match=r"cannot read .*0.parquet"):
        list(read_rows(source(str(tmp_path))))
    latin = pa.array(["café".encode("latin-1")]).view(pa.string())
    turn = pa.StructArray.from_arrays([latin, pa.array(["a"])], ["user", "assistant"])
    pq.write_table(pa.table({"texts": pa.ListArray.from_arrays([0, 1], turn)}), tmp_path / "0.parquet")
    with pytest.raises(SourceError, match=r"cannot read .*0.parquet .*utf-8"):
        list(read_rows(source(str(tmp_path))))
