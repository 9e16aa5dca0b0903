"""Prepared samples by number, for datasets of any size: numbers from the index, rows from memory-mapped units.

A row is read in a fraction of a millisecond. What is resident stays small: mapped pages are given back as reading goes on.
"""

import mmap
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import torch

from bard_core.data.examples import Example
from bard_core.data.index import Index
from bard_core.data.units import CACHE_BYTES, Units
from bard_core.store import artifacts
from bard_core.store.refs import Ref

OPEN_UNITS = 128
RESIDENT_BYTES = 64 * 2**20
FAULT_BYTES = 2**16  # the least that a touched page brings with it


class Reader:
    """Map-style: ``reader[i]`` is the i-th kept sample of a split, in the order of the index. It travels between processes.

    Args:
        dataset: its ref or uri. cache_bytes: what units of a remote dataset may take on this node's disk.

    Raises:
        ArtifactError: when opened, or when a unit is first read: it is missing, torn or changed.
    """

    def __init__(self, dataset: Ref | str, split: Literal["train", "eval"], cache_bytes: int = CACHE_BYTES) -> None:
        uri = dataset.uri if isinstance(dataset, Ref) else dataset
        self._open(artifacts.fetch(dataset), uri, split, cache_bytes)

    def _open(self, folder: Path, uri: str, split: Literal["train", "eval"], cache_bytes: int) -> None:
        self._state = (folder, uri, split, cache_bytes)
        self.index = Index.open(folder)
        self.samples = self.index.train if split == "train" else self.index.eval
        self.units = Units(uri, self.index.units, cache_bytes)
        self._opened: OrderedDict[int, _Rows] = OrderedDict()
        self._touched = 0

    def __getstate__(self) -> Any:
        return self._state

    def __setstate__(self, state: Any) -> None:
        self._open(*state)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Example:
        row = self.row(i, ("id", "input_ids", "turns", "images", "image_grid_thw"))
        ids = torch.from_numpy(row["input_ids"].values.to_numpy().astype("int64"))
        images = row["images"].as_py() or []
        self._give_back(sum(map(len, images)) + 4 * len(ids))
        turns = [(start, end) for start, end in row["turns"].as_py()]
        context = len(turns) - self.index.learned(int(self.samples[i]))
        return Example(row["id"].as_py(), ids, turns, images, row["image_grid_thw"].as_py() or [], context=context)

    def row(self, i: int, columns: tuple[str, ...]) -> dict[str, Any]:
        """Arrow values of a sample."""
        at = self.samples[i]
        return self._rows(int(self.index.unit[at])).get(int(self.index.row[at]), columns)

    def _rows(self, unit: int) -> "_Rows":
        if unit in self._opened:
            self._opened.move_to_end(unit)
        else:
            with self.units.held(unit) as path:
                self._opened[unit] = _Rows(path)
            if len(self._opened) > OPEN_UNITS:
                self._opened.popitem(last=False)
        return self._opened[unit]

    def _give_back(self, size: int) -> None:
        """Count what was touched; past ``RESIDENT_BYTES``, unmap the pages of all open units (the system still caches them)."""
        self._touched += size + FAULT_BYTES
        if self._touched > RESIDENT_BYTES:
            self._touched = 0
            for rows in self._opened.values():
                rows.mapped.madvise(mmap.MADV_DONTNEED)


class _Rows:
    """One unit's Arrow stream, mapped."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        with path.open("rb") as file:
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with pa.ipc.open_stream(pa.py_buffer(self.mapped)) as stream:
            self.batches = list(stream)
            self.columns = {name: number for number, name in enumerate(stream.schema.names)}
        self.starts = [0]
        for batch in self.batches:
            self.starts.append(self.starts[-1] + batch.num_rows)

    def get(self, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        number = bisect_right(self.starts, row) - 1
        batch, at = self.batches[number], row - self.starts[number]
        return {name: batch.column(self.columns[name])[at] for name in columns}
