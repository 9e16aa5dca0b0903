"""prepare: raw shards in, one verified dataset artifact out.

Reads every source as a stream, converts rows to ``messages`` samples, tokenises them, splits off the evaluation images,
and writes Parquet shards, the processor, a report of what was kept and why the rest was not, and the quarantined rows'
ids. What is written:

    train/*.parquet, eval/*.parquet   samples (columns: ``sample_schema``)
    processor/                        Hugging Face processor
    data_report.json                  counts, lengths, quarantine reasons, the leakage check
    quarantine.jsonl                  one line for every refused row: id, source, reason, detail
    manifest.json                     written last
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from bard_core.config.sections import DataConfig, RawSource
from bard_core.data.conversation import with_system_turn
from bard_core.data.ledger import Ledger
from bard_core.data.messages import RowRefused, Sample, convert
from bard_core.data.sources import RawRow, read_rows
from bard_core.data.tokenize import SampleTokenizer, Tokenized, load_processor
from bard_core.lab import world
from bard_core.lab.world import Split
from bard_core.store import artifacts, storage
from bard_core.store.refs import DatasetRef

BATCH_ROWS = 64


class PrepareError(Exception):
    """The data cannot be prepared: says what, where and how to fix it."""


def prepare(config: DataConfig, output_uri: str) -> DatasetRef:
    """Prepare a dataset and commit it to ``output_uri`` (a local folder or s3:// prefix).

    Raises:
        PrepareError: no training sample is left, or an image stands on both sides of the split.
        SourceError: a source cannot be read.
    """
    with storage.scratch("prepare") as scratch:
        staging = scratch / "dataset"
        staging.mkdir()
        processor = load_processor(config)
        processor.save_pretrained(staging / "processor")
        tokenizer = SampleTokenizer(processor, config.max_tokens)
        inputs = _inputs(config, scratch / "raw")
        with Ledger(staging / "quarantine.jsonl") as ledger:
            writers: dict[Split, ShardWriter] = {
                split: ShardWriter(staging / split, split, config.samples_per_shard) for split in ("train", "eval")
            }
            for rows, source, split in _batches(inputs):
                _prepare_batch(rows, source, split, config, tokenizer, writers, ledger)
            for writer in writers.values():
                writer.close()
            report = ledger.report(config)
        _check(report)
        (staging / "data_report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        facts: dict[str, Any] = {"num_train": writers["train"].count, "num_eval": writers["eval"].count}
        facts["system_prompt"] = config.system_prompt
        manifest = artifacts.commit_directory(
            staging, output_uri, kind="dataset", config_digest=artifacts.digest(config), metadata=facts
        )
    return DatasetRef(uri=output_uri, manifest_sha256=manifest.digest, **facts)


def _inputs(config: DataConfig, raw_folder: Path) -> list[tuple[RawSource, Split | None]]:
    """All sources, each with the side it belongs to; None: split by image."""
    inputs: list[tuple[RawSource, Split | None]] = [(source, None) for source in config.sources]
    if config.lab is not None:
        for split, sources in world.write_raw(config.lab, raw_folder).items():
            inputs += [(source, split) for source in sources]
    names = [source.name for source, _ in inputs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise PrepareError(f"data.sources: name {', '.join(repeated)} is used twice; sample ids need distinct names")
    return inputs


def _batches(inputs: list[tuple[RawSource, Split | None]]) -> Iterator[tuple[list[RawRow], RawSource, Split | None]]:
    """Batches of raw rows of all sources, under a progress bar that estimates the time left."""
    from tqdm import tqdm

    shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=len(inputs), desc="prepare", bar_format=shape) as bar:
        seen = 0
        for index, (source, split) in enumerate(inputs):
            rows = read_rows(source)
            while batch := list(islice(rows, BATCH_ROWS)):
                yield batch, source, split
                seen += len(batch)
                bar.set_postfix_str(f"{source.name}, {seen} rows", refresh=False)
                bar.update(index + min(batch[-1].progress, 1.0) - bar.n)
            bar.update(index + 1 - bar.n)


def _prepare_batch(
    rows: list[RawRow],
    source: RawSource,
    split: Split | None,
    config: DataConfig,
    tokenizer: SampleTokenizer,
    writers: "dict[Split, ShardWriter]",
    ledger: Ledger,
) -> None:
    """Convert, tokenise, split and write one batch; refused rows go to the ledger."""
    samples: list[tuple[Sample, list[bytes]]] = []
    for row in rows:
        try:
            sample = convert(row.values, source.schema_name, row.id, source.name)
            sample = replace(sample, messages=with_system_turn(sample.messages, config.system_prompt))
        except RowRefused as refusal:
            ledger.refuse(row.id, source.name, refusal)
            continue
        samples.append((sample, [hashlib.sha256(data).digest() for data in sample.images]))
    for (sample, digests), result in zip(samples, tokenizer([sample for sample, _ in samples]), strict=True):
        try:
            if isinstance(result, RowRefused):
                raise result
            side = split or side_of(sample, digests, config.seed, config.eval_fraction)
            writers[side].add(_row(result, side))
            ledger.keep(result, side, digests[: len(result.sample.images)])
        except RowRefused as refusal:
            ledger.refuse(sample.id, sample.source, refusal)


def side_of(sample: Sample, image_digests: Iterable[bytes], seed: int, eval_fraction: float) -> Split:
    """The side of the split, decided by each image's own hash, so that no image can stand on both.

    A text-only sample is decided by its messages.

    Raises:
        RowRefused: the sample shows images of both sides.
    """
    keys = list(image_digests) or [json.dumps(sample.messages, sort_keys=True).encode()]
    draws = (hashlib.sha256(f"bard-split/{seed}/".encode() + key).digest() for key in keys)
    held_out = {int.from_bytes(draw[:8], "big") < eval_fraction * 2**64 for draw in draws}
    if len(held_out) > 1:
        raise RowRefused("images on both sides of the split", f"{len(keys)} images")
    return "eval" if held_out.pop() else "train"


def _row(result: Tokenized, split: Split) -> dict[str, Any]:
    """One Parquet row (see ``sample_schema``)."""
    sample = result.sample
    row = {
        "id": sample.id,
        "source": sample.source,
        "messages": json.dumps(sample.messages, ensure_ascii=False),
        "images": sample.images,
        "input_ids": result.input_ids,
        "turns": result.turns,
        "image_grid_thw": result.image_grid_thw,
        "num_tokens": len(result.input_ids),
        "num_visual_tokens": result.num_visual_tokens,
        "num_supervised_tokens": result.num_supervised_tokens,
    }
    return row | ({"answer": sample.messages[-1]["content"][0]["text"]} if split == "eval" else {})


def sample_schema(split: Split) -> Any:
    """The Arrow schema of prepared samples; evaluation rows also carry the last turn's text as ``answer``."""
    import pyarrow as pa

    lists = pa.list_(pa.list_(pa.int32()))
    columns = {"id": pa.string(), "source": pa.string(), "messages": pa.string(), "images": pa.list_(pa.binary())}
    columns |= {"input_ids": pa.list_(pa.int32()), "turns": lists, "image_grid_thw": lists}
    columns |= dict.fromkeys(("num_tokens", "num_visual_tokens", "num_supervised_tokens"), pa.int32())
    return pa.schema([*columns.items(), *([("answer", pa.string())] if split == "eval" else [])])


class ShardWriter:
    """Writes rows to ``<folder>/00000.parquet``, ``00001.parquet``, ... in small row groups."""

    def __init__(self, folder: Path, split: Split, rows_per_shard: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.schema = sample_schema(split)
        self.rows_per_shard = rows_per_shard
        self.count = 0
        self._pending: list[dict[str, Any]] = []
        self._writer: Any = None

    def add(self, row: dict[str, Any]) -> None:
        """Append one row; closes the shard when it is full."""
        self._pending.append(row)
        self.count += 1
        full = self.count % self.rows_per_shard == 0
        if full or len(self._pending) == BATCH_ROWS:
            self._flush()
        if full:
            self.close()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            shard = (self.count - 1) // self.rows_per_shard
            self._writer = pq.ParquetWriter(self.folder / f"{shard:05d}.parquet", self.schema, compression="zstd")
        self._writer.write_table(pa.Table.from_pylist(self._pending, schema=self.schema))
        self._pending = []

    def close(self) -> None:
        """Write what is pending and finish the current shard."""
        if self._pending:
            self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _check(report: dict[str, Any]) -> None:
    """Refuse a dataset that cannot train or whose evaluation would be dishonest."""
    if report["train"]["samples"] == 0:
        raise PrepareError(
            f"no training sample is left; rows refused: {report['refused'] or 'none'}; check data.sources, data.eval_fraction "
            "and data.max_tokens"
        )
    shared = report["leakage"]["images_in_both"]
    if shared:
        raise PrepareError(
            f"{shared} evaluation images also occur in training; sources with their own split share images: "
            "remove one of them from data.sources"
        )
