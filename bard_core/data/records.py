"""What a unit's files hold: a row for whoever trains, an entry for the merge, one each a sample; and how they are written."""

import hashlib
import json
from pathlib import Path
from typing import Any

from bard_core.data.images import LOOK_BYTES
from bard_core.data.index import HASH_BYTES
from bard_core.data.messages import Sample
from bard_core.data.tokenize import Tokenized

BATCH_ROWS, BATCH_BYTES = 32, 16 * 2**20


def rows_schema() -> Any:
    """The Arrow schema of prepared samples. ``turns``: [start, end) of each assistant turn; ``answer``: the last one's text.

    ``images``: in the order of their tokens; a video's moments (``data.videos``) are images among them.
    """
    import pyarrow as pa

    lists = pa.list_(pa.list_(pa.int32()))
    return pa.schema(
        {
            "id": pa.string(),
            "source": pa.string(),
            "messages": pa.string(),
            "images": pa.list_(pa.binary()),
            "input_ids": pa.list_(pa.int32()),
            "turns": lists,
            "image_grid_thw": lists,
            "num_visual_tokens": pa.int32(),
            "num_supervised_tokens": pa.int32(),
            "answer": pa.string(),
        }
    )


def entries_schema() -> Any:
    """What the merge reads of a sample. ``text``: a hash of its conversation; ``looks``: of each image, null for none."""
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.string(),
            "tokens": pa.int32(),
            "visual_tokens": pa.int32(),
            "turn_lengths": pa.list_(pa.int32()),
            "image_hashes": pa.list_(pa.binary(HASH_BYTES)),
            "looks": pa.list_(pa.binary(LOOK_BYTES)),
            "text": pa.binary(HASH_BYTES),
        }
    )


def row_of(result: Tokenized) -> dict[str, Any]:
    sample = result.sample
    return {
        "id": sample.id,
        "source": sample.source,
        "messages": json.dumps(sample.messages, ensure_ascii=False),
        "images": sample.images,
        "input_ids": result.input_ids,
        "turns": result.turns,
        "image_grid_thw": result.image_grid_thw,
        "num_visual_tokens": result.num_visual_tokens,
        "num_supervised_tokens": sum(result.learned_lengths),
        "answer": sample.messages[-1]["content"][0]["text"],
    }


def entry_of(result: Tokenized) -> dict[str, Any]:
    sample = result.sample
    words = [[m["role"], *(item.get("text", "<image>") for item in m["content"])] for m in sample.messages]
    text = " ".join(json.dumps(words, ensure_ascii=False).lower().split())
    return {
        "id": sample.id,
        "tokens": len(result.input_ids),
        "visual_tokens": result.num_visual_tokens,
        "turn_lengths": result.learned_lengths,
        "image_hashes": _hashes(sample),
        "looks": [look or None for look in sample.looks],
        "text": _hash(text.encode()),
    }


def _hashes(sample: Sample) -> list[bytes]:
    """Of each image; the moments of a video share that of the video, which is on one side of the split as a whole."""
    hashes = [_hash(data) for data in sample.images]
    for item in (item for message in sample.messages for item in message["content"] if item["type"] == "video"):
        first, last = item["images"]
        hashes[first:last] = [_hash(b"".join(hashes[first:last]))] * (last - first)
    return hashes


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


class Writer:
    """Rows to an uncompressed Arrow stream, in batches small enough to read one row of without reading much."""

    def __init__(self, path: Path, schema: Any, batch_rows: int = BATCH_ROWS) -> None:
        import pyarrow as pa

        self.count, self._pending, self._size = 0, list[dict[str, Any]](), 0
        self._schema, self._batch_rows = schema, batch_rows
        self._file = path.open("wb")
        self._stream = pa.ipc.new_stream(self._file, schema)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._stream.close()
        self._file.close()

    def add(self, row: dict[str, Any], size: int = 0) -> None:
        self._pending.append(row)
        self.count += 1
        self._size += size
        if len(self._pending) == self._batch_rows or self._size > BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._pending:
            self._stream.write_batch(pa.RecordBatch.from_pylist(self._pending, self._schema))
            self._pending, self._size = [], 0
