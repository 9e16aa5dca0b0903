"""The rows of one raw file, one at a time and in file order, whatever the file claims to hold.

Parquet, an Arrow stream (what ``Dataset.save_to_disk`` writes), JSON lines, or a JSON list. Memory follows the rows that are read
at a time, not the file: a row group may be huge, or a few bytes that inflate.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bard_core.config.sources import COLUMNS, RawSource
from bard_core.data.refusal import RowRefused
from bard_core.data.schemas import REQUIRED

ROWS_PER_READ = 64
READ_BYTES = 128 * 2**20  # what the rows of one read may take
MAX_INFLATION, INFLATED_BYTES = 200, 64 * 2**20  # a column chunk above both is a bomb
MAX_LINE_BYTES = 256 * 2**20
MAX_JSON_BYTES = 4 * 2**30


class ShardDamagedError(Exception):
    """A whole raw file that cannot be read, or is not in its source's schema: it is refused alone, and counted."""


def rows_of(path: Path, format: str, source: RawSource) -> Iterator[dict[str, Any] | RowRefused]:
    """Rows as dicts under the schema's own column names, only the columns that its converter reads; or the refusal of one.

    Raises:
        ShardDamagedError: the file is no such file, or lacks a column.
    """
    import pyarrow as pa

    read = {".parquet": _parquet, ".arrow": _arrow, ".jsonl": _json_lines, ".json": _json_list}[format]
    try:
        yield from read(path, source)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, pa.ArrowException, ValueError) as error:
        raise ShardDamagedError(f"{type(error).__name__}: {error}"[:300]) from error


def count_rows(path: Path, format: str) -> int:
    """How many rows the file has; 0 where it cannot be read, which ``rows_of`` will say."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if format == ".parquet":
            return int(pq.read_metadata(path).num_rows)
        if format == ".arrow":
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
                return sum(batch.num_rows for batch in stream)
        if format == ".jsonl":
            with path.open("rb") as file:
                return sum(1 for line in file if line.strip())
        return len(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, pa.ArrowException):
        return 0


def wanted_columns(present: list[str], source: RawSource) -> dict[str, str]:
    """Name in the file -> name in the schema, of the columns to read.

    Raises:
        ShardDamagedError: a column that the schema cannot do without is not there.
    """
    names = {column: source.columns.get(column, column) for column in COLUMNS[source.schema_name]}
    for group in REQUIRED[source.schema_name]:
        if not any(names[column] in present for column in group):
            raise ShardDamagedError(
                f"no column {' or '.join(names[column] for column in group)} of schema {source.schema_name} "
                f"(found {', '.join(present)}); check `schema_name`, `uri` and `columns`"
            )
    if missing := [column for column in source.min_ratings if column not in present]:
        raise ShardDamagedError(f"no rating column {missing[0]} (found {', '.join(present)}); check `min_ratings`")
    return {name: column for column, name in names.items() if name in present} | {name: name for name in source.min_ratings}


def _parquet(path: Path, source: RawSource) -> Iterator[dict[str, Any] | RowRefused]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
        columns = wanted_columns(file.schema_arrow.names, source)
        for group in range(file.metadata.num_row_groups):
            batches = file.iter_batches(_rows_per_read(file.metadata.row_group(group), set(columns)), [group], list(columns))
            for batch in batches:
                yield from _renamed(batch, columns)


def _rows_per_read(group: Any, columns: set[str]) -> int:
    """How many rows of a row group fit ``READ_BYTES``, by its metadata. A dictionary holds values that every row may repeat.

    Raises:
        ShardDamagedError: a column would inflate beyond reason.
    """
    worst = 0.0
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema.split(".")[0] not in columns:
            continue
        size, stored = chunk.total_uncompressed_size, max(chunk.total_compressed_size, 1)
        if size > INFLATED_BYTES and size > MAX_INFLATION * stored:
            raise ShardDamagedError(f"{stored} bytes of column {chunk.path_in_schema} inflate to {size}: a bomb, not data")
        if chunk.has_dictionary_page:
            dictionary = chunk.data_page_offset - chunk.dictionary_page_offset
            worst += min(size, dictionary * max(1.0, 4 * size / stored))
        else:
            worst += size / max(group.num_rows, 1)
    return max(1, min(ROWS_PER_READ, int(READ_BYTES // max(worst, 1))))


def _arrow(path: Path, source: RawSource) -> Iterator[dict[str, Any] | RowRefused]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        columns = wanted_columns(stream.schema.names, source)
        for batch in stream:
            for start in range(0, batch.num_rows, ROWS_PER_READ):
                yield from _renamed(batch.select(list(columns)).slice(start, ROWS_PER_READ), columns)


def _renamed(batch: Any, columns: dict[str, str]) -> Iterator[dict[str, Any] | RowRefused]:
    """Rows of a batch; one whose text is in no encoding is refused alone."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (UnicodeDecodeError, ValueError):
        for number in range(batch.num_rows):
            try:
                yield {columns[name]: value for name, value in batch.slice(number, 1).to_pylist()[0].items()}
            except (UnicodeDecodeError, ValueError) as error:
                yield RowRefused("text is not Unicode", str(error)[:80])
        return
    for row in rows:
        yield {columns[name]: value for name, value in row.items()}


def _json_lines(path: Path, source: RawSource) -> Iterator[dict[str, Any] | RowRefused]:
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            if not line.strip():
                continue
            if len(line) == MAX_LINE_BYTES:
                raise ShardDamagedError(f"a line of more than {MAX_LINE_BYTES} bytes; is this JSON lines?")
            try:
                yield _json_row(json.loads(line), source)
            except (ValueError, RecursionError) as error:
                yield RowRefused("line is not JSON", str(error)[:80])


def _json_list(path: Path, source: RawSource) -> Iterator[dict[str, Any] | RowRefused]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ShardDamagedError(f"a JSON list of more than {MAX_JSON_BYTES} bytes is read whole; write it as JSON lines")
    rows = json.loads(path.read_bytes())
    if not isinstance(rows, list):
        raise ShardDamagedError(f"the file holds a {type(rows).__name__}, not a list of rows")
    for row in rows:
        yield _json_row(row, source)


def _json_row(row: Any, source: RawSource) -> dict[str, Any] | RowRefused:
    if not isinstance(row, dict):
        return RowRefused("row is not an object", f"{row!r:.80}")
    names = {column: source.columns.get(column, column) for column in COLUMNS[source.schema_name]}
    names |= {column: column for column in source.min_ratings}
    return {column: row.get(name) for column, name in names.items()}
