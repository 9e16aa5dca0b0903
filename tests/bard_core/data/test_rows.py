"""Reading raw files: the same rows from every format, whatever a file claims; memory follows what is read at a time."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bard_core.config.sources import RawSource
from bard_core.data.refusal import RowRefused
from bard_core.data.rows import ShardDamagedError, count_rows, rows_of

ROWS = [{"images": [], "texts": [{"user": f"q{i}", "assistant": "a"}], "unused": i} for i in range(150)]


def source(**options: Any) -> RawSource:
    return RawSource(name="raw", schema_name="finevision", uri="/raw", **options)


def read(path: Path, **options: Any) -> list[Any]:
    return list(rows_of(path, path.suffix, source(**options)))


def write(folder: Path, format: str) -> Path:
    path = folder / f"shard{format}"
    if format == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=40)
    elif format == ".arrow":
        datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
        path = next((folder / "saved").glob("*.arrow"))
    elif format == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, ROWS)))
    else:
        path.write_text(json.dumps(ROWS))
    return path


@pytest.mark.parametrize("format", [".parquet", ".arrow", ".jsonl", ".json"])
def test_every_format_gives_the_same_rows_of_the_wanted_columns(tmp_path: Path, format: str) -> None:
    path = write(tmp_path, format)
    assert [row["texts"] for row in read(path)] == [row["texts"] for row in ROWS]
    assert read(path)[0].keys() == {"images", "texts"} and count_rows(path, format) == 150


def test_columns_may_have_other_names_and_ratings_are_read_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    pq.write_table(pa.Table.from_pylist([{"dialogue": ROWS[0]["texts"], "relevance_min": 4}]), path)
    (row,) = read(path, columns={"texts": "dialogue"}, min_ratings={"relevance_min": 2})
    assert row == {"texts": ROWS[0]["texts"], "relevance_min": 4}
    with pytest.raises(ShardDamagedError, match="no rating column formatting_min"):
        read(path, columns={"texts": "dialogue"}, min_ratings={"formatting_min": 2})


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("0.parquet", b"PAR1 torn", "magic bytes"),
        ("0.arrow", b"not arrow", "."),
        ("0.json", b"{", "JSONDecodeError"),
        ("0.json", b"{}", "not a list"),
        ("0.json", b"\xff\xfe", "."),
    ],
)
def test_a_damaged_file_says_so(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ShardDamagedError, match=words):
        read(tmp_path / name)
    assert count_rows(tmp_path / name, f".{name.split('.')[1]}") == 0


def test_a_wrong_schema_names_what_is_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["q"]}), tmp_path / "0.parquet")
    with pytest.raises(ShardDamagedError, match=r"no column texts of schema finevision .found question.; check `schema_name`"):
        read(tmp_path / "0.parquet")


def test_one_bad_line_or_text_is_refused_alone(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text('{"texts": 1}\nnonsense\n[1]\n{"texts": 2}\n' + "[" * 100_000)
    rows = read(tmp_path / "0.jsonl")
    assert [row.reason if isinstance(row, RowRefused) else row["texts"] for row in rows] == [
        1, "line is not JSON", "row is not an object", 2, "line is not JSON",
    ]  # fmt: skip
    latin = pa.array([b"good", "café".encode("latin-1"), b"fine"]).view(pa.string())
    turn = pa.StructArray.from_arrays([latin, pa.array(["a"] * 3)], ["user", "assistant"])
    pq.write_table(pa.table({"texts": pa.ListArray.from_arrays([0, 1, 2, 3], turn)}), tmp_path / "0.parquet")
    kept, refused, after = read(tmp_path / "0.parquet")
    assert refused.reason == "text is not Unicode" and kept["texts"][0]["user"] == "good" and after["texts"][0]["user"] == "fine"


def test_a_column_that_inflates_beyond_reason_is_a_bomb(tmp_path: Path) -> None:
    zeros = "0" * (100 * 2**20)
    turn = pa.StructArray.from_arrays([pa.array([zeros]), pa.array(["a"])], ["user", "assistant"])
    table = pa.table({"texts": pa.ListArray.from_arrays([0, 1], turn)})
    pq.write_table(table, tmp_path / "0.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "0.parquet").stat().st_size < 100_000
    with pytest.raises(ShardDamagedError, match="a bomb, not data"):
        read(tmp_path / "0.parquet")


PEAK = """
import resource, sys
from pathlib import Path
from bard_core.config.sources import RawSource
from bard_core.data.rows import rows_of
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = RawSource(name="raw", schema_name="finevision", uri="/raw")
count = sum(1 for _ in rows_of(Path(sys.argv[1]), ".parquet", source))
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def peak_of(path: Path) -> tuple[int, float]:
    """(rows, MiB that reading them took), in a process of its own."""
    assert resource.getrusage  # the platform has it
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    count, peak = done.stdout.split()
    return int(count), float(peak)


@pytest.mark.slow
def test_memory_is_bounded_by_what_is_read_at_a_time(tmp_path: Path) -> None:
    """A row group of 1,500 images of 400 kB (600 MB), and 300 rows that share one text of 10 MB (3 GB if read at once)."""
    image = {"bytes": bytes(range(256)) * 1600, "path": "x"}
    rows = [{"images": [{**image, "path": str(i)}], "texts": ROWS[0]["texts"]} for i in range(1500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "group.parquet", row_group_size=1500, use_dictionary=False)
    assert peak_of(tmp_path / "group.parquet") == (1500, pytest.approx(0, abs=400))
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), ["ab" * 5_000_000])
    turn = pa.StructArray.from_arrays([text, pa.array(["a"] * 300)], ["user", "assistant"])
    table = pa.table({"texts": pa.ListArray.from_arrays(list(range(301)), turn)})
    pq.write_table(table, tmp_path / "repeated.parquet", compression="zstd")
    count, peak = peak_of(tmp_path / "repeated.parquet")
    assert count == 300 and peak < 700
