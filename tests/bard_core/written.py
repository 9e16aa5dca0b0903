"""A prepared dataset written by hand: what the reader is tested against, and at sizes that nothing prepares in a test."""

import hashlib
import json

import numpy as np
import pyarrow as pa

from bard_core.data import index
from bard_core.store import artifacts
from bard_core.store.refs import DatasetRef

ROWS_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "messages": pa.string(),
        "images": pa.list_(pa.binary()),
        "input_ids": pa.list_(pa.int32()),
        "turns": pa.list_(pa.list_(pa.int32())),
        "image_grid_thw": pa.list_(pa.list_(pa.int32())),
        "num_visual_tokens": pa.int32(),
        "num_supervised_tokens": pa.int32(),
        "answer": pa.string(),
    }
)


def row(name, tokens, turns, images=(), grids=(), **more):
    """One row of a unit; its index entry may be told more: split, keep, repeat, context (first turns without a loss)."""
    ids = [1 + (7 * i + len(name)) % 400 for i in range(tokens)]
    values = {"id": name, "source": "s", "messages": "[]", "images": list(images), "input_ids": ids, "turns": turns}
    values |= {"image_grid_thw": list(grids), "num_visual_tokens": 0, "num_supervised_tokens": 0, "answer": ""}
    return values | more


def write_units(root, units, rows_per_batch=64):
    """Commit units ``[[row, ...], ...]`` below ``root/units``; returns the entries of ``units.json``."""
    entries = []
    for number, rows in enumerate(units):
        staging = root / f"staging-{number}"
        staging.mkdir(parents=True)
        plain = [{name: values[name] for name in ROWS_SCHEMA.names} for values in rows]
        with pa.ipc.new_stream(staging / "rows.arrow", ROWS_SCHEMA) as stream:
            stream.write_table(pa.Table.from_pylist(plain, ROWS_SCHEMA), max_chunksize=rows_per_batch)
        size = (staging / "rows.arrow").stat().st_size
        name = f"s-{number:05d}"
        manifest = artifacts.commit_directory(staging, str(root / "units" / name), kind="unit")
        entries.append({"name": name, "manifest_sha256": manifest.digest, "rows": len(rows), "bytes": size})
    return entries


def columns_of(units):
    """The index's columns for units of rows."""
    rows = [(number, at, values) for number, unit in enumerate(units) for at, values in enumerate(unit)]
    hashes = [[hashlib.blake2b(image, digest_size=16).digest() for image in values["images"]] for *_, values in rows]
    plain = {
        "id": [values["id"] for *_, values in rows],
        "unit": [number for number, *_ in rows],
        "row": [at for _, at, _ in rows],
        "source": [values["source"] for *_, values in rows],
        "split": [values.get("split", 0) for *_, values in rows],
        "keep": [values.get("keep", True) for *_, values in rows],
        "reason": ["" for _ in rows],
        "tokens": [len(values["input_ids"]) for *_, values in rows],
        "visual_tokens": [values["num_visual_tokens"] for *_, values in rows],
        "turn_lengths": [[end - start for start, end in values["turns"][values.get("context", 0) :]] for *_, values in rows],
        "image_hashes": hashes,
        "repeat": [values.get("repeat", 1) for *_, values in rows],
    }
    return {name: pa.array(values, index.schema().field(name).type) for name, values in plain.items()}


def write_index(folder, entries, columns):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "units.json").write_text(json.dumps(entries))
    index.write(folder / "index.arrow", columns)


def write_dataset(root, units, **kwargs):
    """Units and index below ``root``; returns the dataset's ref."""
    entries = write_units(root, units, **kwargs)
    columns = columns_of(units)
    write_index(root / "staging", entries, columns)
    (root / "staging" / "card.json").write_text(json.dumps({"samples": {"train": 0}, "sources": {}}))
    manifest = artifacts.commit_directory(root / "staging", str(root / "dataset"), kind="dataset")
    kept = np.array(columns["keep"]) & (np.array(columns["split"]) == 0)
    counts = {"num_train": int(kept.sum()), "num_eval": 0, "epoch_samples": int(np.array(columns["repeat"])[kept].sum())}
    return DatasetRef(uri=str(root / "dataset"), manifest_sha256=manifest.digest, **counts)
