"""Raw Parquet shards, read as a stream: from a local folder, S3, or the Hugging Face hub, all through fsspec.

Shards are read in the order of their names and rows in file order, a few at a time and only the columns a converter
needs, so that a run sees the same rows in the same order and memory does not grow with the data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from bard_core.config.sections import RawSource
from bard_core.data.messages import COLUMNS, REQUIRED_COLUMNS

ROWS_PER_READ = 64


class SourceError(Exception):
    """Raw data that cannot be read at all: says which source and how to fix it."""


@dataclass(frozen=True)
class RawRow:
    """One raw row. ``id``: <source>/<shard>/<row>, stable between runs; ``progress``: share of the source read so far, 0 to 1."""

    id: str
    values: dict[str, Any]
    progress: float


def list_shards(source: RawSource) -> tuple[Any, str, list[str]]:
    """(file system, root path, sorted ``*.parquet`` paths) of a source.

    Raises:
        SourceError: the place does not exist, cannot be reached, or holds no Parquet shard.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(source.uri)
        shards = sorted(path for path in filesystem.find(root) if path.endswith(".parquet"))
    except Exception as error:  # every fsspec backend brings its own exceptions
        raise SourceError(f"source {source.name!r}: cannot list {source.uri} ({type(error).__name__}: {error})") from error
    if not shards:
        raise SourceError(
            f"source {source.name!r}: no *.parquet under {source.uri}; "
            "give a folder, an s3:// prefix or hf://datasets/<owner>/<name>/<folder>"
        )
    return filesystem, root, shards


def read_rows(source: RawSource) -> Iterator[RawRow]:
    """Stream the rows of a source, at most ``source.max_samples``.

    Raises:
        SourceError: nothing to read, a shard is damaged, or a shard is not in the source's schema.
    """
    filesystem, root, shards = list_shards(source)
    count = 0
    for index, path in enumerate(shards):
        name = path.removeprefix(root).strip("/").removesuffix(".parquet") or "0"
        for row_index, (values, done) in enumerate(_shard_rows(source, filesystem, path)):
            count += 1
            progress = (index + done) / len(shards)
            if source.max_samples is not None:
                progress = max(progress, count / source.max_samples)
            yield RawRow(f"{source.name}/{name}/{row_index}", values, progress)
            if count == source.max_samples:
                return


def _shard_rows(source: RawSource, filesystem: Any, path: str) -> Iterator[tuple[dict[str, Any], float]]:
    """Rows of one shard with the share of the shard read so far."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with filesystem.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            present = parquet.schema_arrow.names
            missing = [column for column in REQUIRED_COLUMNS[source.schema_name] if column not in present]
            if missing:
                raise SourceError(
                    f"source {source.name!r}: {path} has no column {', '.join(missing)} of schema {source.schema_name} "
                    f"(found {', '.join(present)}); check `schema_name` and `uri`"
                )
            columns = [column for column in COLUMNS[source.schema_name] if column in present]
            done = 0
            for batch in parquet.iter_batches(batch_size=ROWS_PER_READ, columns=columns):
                for values in batch.to_pylist():
                    done += 1
                    yield values, done / parquet.metadata.num_rows
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:  # Parquet itself takes text in any encoding
        raise SourceError(f"source {source.name!r}: cannot read {path} ({error}); replace the shard or remove it") from error
