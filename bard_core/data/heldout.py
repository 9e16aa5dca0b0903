"""The evaluation split of a prepared dataset, whole: conversations, images and references, for who judges or shows samples."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bard_core.data.reader import Reader
from bard_core.store.refs import Ref

COLUMNS = ("id", "source", "messages", "images", "answer")


def held_out(dataset: Ref | str, ids: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows (``COLUMNS``; messages are JSON, answer is the last turn's text) in the index's order; ``ids``: only those.

    Only the units that hold such rows are fetched.
    """
    reader = Reader(dataset, "eval")
    places = list(range(len(reader)))
    if ids is not None:
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pc.is_in(reader.index.table["id"].take(pa.array(reader.samples)), pa.array(list(ids), pa.string()))
        places = np.flatnonzero(wanted.to_numpy()).tolist()
    for place in places:
        yield {name: value.as_py() for name, value in reader.row(place, COLUMNS).items()}


def write_held_out(dataset: Ref | str, path: Path) -> int:
    """Write the rows as one Parquet file, for readers of files; returns how many there are.

    Those with videos are left out: our own tasks ask about pictures (``evaluation.video`` is for benchmarks of videos).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    schema = pa.schema([("id", text), ("source", text), ("messages", text), ("images", pa.list_(pa.binary())), ("answer", text)])
    count = 0
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for row in held_out(dataset):
            if any(item["type"] == "video" for message in json.loads(row["messages"]) for item in message["content"]):
                continue
            writer.write_batch(pa.RecordBatch.from_pylist([row], schema))
            count += 1
    return count
