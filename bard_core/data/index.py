"""The index of a prepared dataset: one row a sample: its place, its side of the split and its lengths, but none of its bytes.

A dataset is its processor, its ``units.json`` and this index; the samples themselves stay in the units they were prepared in.
The index is an uncompressed Arrow stream, so its columns are views of the file: opening it costs the same for any number of rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

FILE, UNITS_FILE = "index.arrow", "units.json"
TRAIN, EVAL = 0, 1
HASH_BYTES = 16
ROWS_PER_BATCH = 1 << 24  # strings of a batch have 32-bit offsets


def schema() -> Any:
    """The index's Arrow schema. Rows stand in the order of ``units.json``, and in a unit's own order.

    ``unit``: place in ``units.json``. ``split``: ``TRAIN`` or ``EVAL``. ``reason``: why ``keep`` is false, else "". ``tokens``:
    clean tokens. ``turn_lengths``: tokens of each answer that carries a loss. ``image_hashes``: blake2b of each image's bytes.
    ``repeat``: places in an epoch, as the mixing weights have it.
    """
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.string(),
            "unit": pa.int32(),
            "row": pa.int32(),
            "source": pa.dictionary(pa.int32(), pa.string()),
            "split": pa.int8(),
            "keep": pa.bool_(),
            "reason": pa.dictionary(pa.int32(), pa.string()),
            "tokens": pa.int32(),
            "visual_tokens": pa.int32(),
            "turn_lengths": pa.list_(pa.int32()),
            "image_hashes": pa.list_(pa.binary(HASH_BYTES)),
            "repeat": pa.int16(),
        }
    )


def write(path: Path, columns: Mapping[str, Any]) -> None:
    """Write an index.

    Raises:
        ValueError: the columns are not those of ``schema`` (pyarrow's own errors derive from it).
    """
    import pyarrow as pa

    wanted = schema()
    if missing := [name for name in wanted.names if name not in columns]:
        raise ValueError(f"{path}: the index lacks the columns {', '.join(missing)}")
    arrays = [columns[field.name] for field in wanted]
    arrays = [array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array]) for array in arrays]
    arrays = [array.cast(field.type) for array, field in zip(arrays, wanted, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=wanted).unify_dictionaries().combine_chunks()
    with path.open("wb") as file, pa.ipc.new_stream(file, wanted) as stream:
        stream.write_table(table, max_chunksize=ROWS_PER_BATCH)


@dataclass(frozen=True)
class Unit:
    """One entry of ``units.json``: a unit's name, the digest of its manifest, how many rows and bytes it holds."""

    name: str
    manifest_sha256: str
    rows: int
    bytes: int


class Index:
    """An opened index. Numbers are numpy views of the mapped file; ``table`` has the other columns."""

    def __init__(self, table: Any, units: tuple[Unit, ...]) -> None:
        self.table = table
        self.units = units

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """Open the index of a dataset's (local) folder.

        Raises:
            FileNotFoundError: there is none.
        """
        import pyarrow as pa

        if not (folder / FILE).is_file():
            raise FileNotFoundError(f"{folder} has no {FILE}: is this a prepared dataset? Run the prepare stage first")
        with pa.memory_map(str(folder / FILE)) as file, pa.ipc.open_stream(file) as stream:
            table = stream.read_all()
        return cls(table, tuple(Unit(**entry) for entry in json.loads((folder / UNITS_FILE).read_text(encoding="utf-8"))))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> Any:
        """A number column as numpy: a view where the file holds it in one piece."""
        chunks = self.table.column(name).chunks
        arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays or [np.empty(0, np.int32)])

    @cached_property
    def unit(self) -> Any:
        return self.column("unit")

    @cached_property
    def row(self) -> Any:
        return self.column("row")

    @cached_property
    def tokens(self) -> Any:
        return self.column("tokens")

    @cached_property
    def visual_tokens(self) -> Any:
        return self.column("visual_tokens")

    @cached_property
    def repeat(self) -> Any:
        return self.column("repeat")

    @cached_property
    def train(self) -> Any:
        """Places in the index of the kept training samples, ascending; each counts ``repeat`` times in an epoch."""
        return self._kept(TRAIN)

    @cached_property
    def eval(self) -> Any:
        """Places in the index of the kept held-out samples, ascending."""
        return self._kept(EVAL)

    def _kept(self, split: int) -> Any:
        return np.flatnonzero((self.column("split") == split) & self.column("keep")).astype(np.int64)

    def learned(self, i: int) -> int:
        """How many answers of the row carry a loss: its last ones."""
        return len(self.table.column("turn_lengths")[i])

    def laid_out(self, block_size: int | None, copies: int) -> Any:
        """Tokens (int32) of each row's layout: its N clean ones and ``copies`` of its learned turns, each padded to whole blocks.

        ``block_size`` None: an autoregressive layout, which has the clean tokens only.
        """
        if block_size is None or not copies:
            return self.tokens.astype(np.int32)
        total = []
        for chunk in self.table.column("turn_lengths").chunks:
            offsets = chunk.offsets.to_numpy()
            padded = -(-chunk.values.to_numpy() // block_size) * block_size
            before = np.concatenate([[0], np.cumsum(padded, dtype=np.int64)])
            total.append(before[offsets[1:]] - before[offsets[:-1]])
        return (self.tokens + copies * np.concatenate(total or [np.empty(0, np.int64)])).astype(np.int32)
