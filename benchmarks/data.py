"""Preparing data against the released converters' way, on the same realistic rows in the same run.

    make bench-data
    python benchmarks/data.py --part prepare --rows 1000

The released way of a FineVision row: decode every image, write it as an optimised JPEG of quality 95, keep the texts as dicts,
dump them as indented JSON; it checks nothing and tokenises nothing. Ours: check every byte, see how each image looks (or not:
``bytes``), tokenise, write the unit, and merge. Both are timed by the processor time they used. Also: the same over processes,
and the peak memory of preparing and of merging at growing numbers of rows, each in a process of its own.
"""

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _machine import path as result_path
from _machine import write as write_result
from _reading import measure_read
from PIL import Image

from bard_core.config.sections.data import DataConfig
from bard_core.config.sources import RawSource

ROWS_PER_SHARD = 50
MERGED_ROWS = (10_000, 100_000, 1_000_000)
PREPARED_ROWS = (1_000, 10_000, 100_000)
SMALL_ROWS_PER_SHARD = 2000


def picture(rng: np.random.Generator, number: int) -> bytes:
    """Two of three a JPEG of about 0.8 megapixels, else a PNG of a chart's kind; sizes around those of public corpora."""
    width, height = int(rng.integers(640, 1400)), int(rng.integers(480, 1000))
    coarse = rng.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if number % 3:
        noisy = np.asarray(image, np.int16) + rng.integers(-6, 6, (height, width, 3), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    else:
        image.quantize(64).save(buffer, "PNG")
    return buffer.getvalue()


def write_rows(folder: Path, count: int, seed: int = 0) -> None:
    """FineVision shards of ``count`` rows: one image, one to four turns of a log-normal number of words."""
    rng = np.random.default_rng(seed)
    words = [f"word{number}" for number in range(2000)]
    rows = []
    for number in range(count):
        texts = [
            {
                key: " ".join(rng.choice(words, int(rng.lognormal(mean, 0.8)) + 1))
                for key, mean in (("user", 2.5), ("assistant", 3.6))
            }
            for _ in range(int(rng.integers(1, 5)))
        ]
        rows.append({"images": [{"bytes": picture(rng, number), "path": "x"}], "texts": texts})
    folder.mkdir(parents=True)
    for start in range(0, count, ROWS_PER_SHARD):
        pq.write_table(
            pa.Table.from_pylist(rows[start : start + ROWS_PER_SHARD]), folder / f"{start // ROWS_PER_SHARD:05d}.parquet"
        )


def write_small_rows(folder: Path, count: int) -> None:
    """The same, of small pictures and short texts: so many that memory would show them."""
    rng = np.random.default_rng(count)
    folder.mkdir(parents=True)
    for start in range(0, count, SMALL_ROWS_PER_SHARD):
        rows = []
        for number in range(start, min(start + SMALL_ROWS_PER_SHARD, count)):
            image, buffer = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)), io.BytesIO()
            image.resize((64, 48)).save(buffer, "JPEG")
            texts = [{"user": f"Question {number}", "assistant": f"Answer {number}"}]
            rows.append({"images": [{"bytes": buffer.getvalue(), "path": "x"}], "texts": texts})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{start // SMALL_ROWS_PER_SHARD:05d}.parquet")


def released(folder: Path, out: Path) -> None:
    """The released converter's work on every row, in one process."""
    out.mkdir(parents=True)
    conversations = []
    for shard in sorted(folder.glob("*.parquet")):
        for number, row in enumerate(pq.read_table(shard).to_pylist()):
            names = []
            for place, image in enumerate(row["images"]):
                opened = Image.open(io.BytesIO(image["bytes"])).convert("RGB")
                names.append(f"{shard.stem}-{number}_{place}.jpg")
                opened.save(out / names[-1], format="JPEG", quality=95, optimize=True)
            turns: list[dict[str, Any]] = []
            for at, turn in enumerate(row["texts"]):
                pictures = [{"type": "image", "image": name} for name in names] if at == 0 else []
                turns.append({"role": "user", "content": [*pictures, {"type": "text", "text": turn["user"]}]})
                turns.append({"role": "assistant", "content": [{"type": "text", "text": turn["assistant"]}]})
            conversations.append({"conversation": turns})
    (out / "qwen3.json").write_text(json.dumps(conversations, ensure_ascii=False, indent=2), encoding="utf-8")


def configured(folder: Path, compare: str) -> DataConfig:
    source: Any = {"name": "raw", "schema_name": "finevision", "uri": str(folder), "compare": compare}
    return DataConfig(sources=(RawSource(**source),), processor="lab", max_tokens=8192, max_pixels=1 << 20)


def one_way(way: str, folder: Path, out: Path, processes: int) -> dict[str, float]:
    """Wall and processor seconds of one way. A first shard beforehand pays for imports and for loading the processor."""
    with tempfile.TemporaryDirectory() as first:
        shutil.copy(min(folder.glob("*.parquet")), first)
        run(way, Path(first), Path(first) / "out" / "first", 1)
    before, start = cpu_seconds(), time.perf_counter()
    run(way, folder, out, processes)
    return {
        "cpu_s": cpu_seconds() - before,
        "wall_s": time.perf_counter() - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run(way: str, folder: Path, out: Path, processes: int) -> None:
    from bard_core.data.prepare import prepare

    if way == "released":
        released(folder, out)
    else:
        prepare(configured(folder, way.removeprefix("ours, ")), str(out / "dataset"), processes=processes)


def cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def merge_rows(count: int) -> dict[str, float]:
    """Merge that many invented entries of one image each; time and the memory that it adds."""
    from bard_core.data.merge import merge
    from bard_core.data.records import entries_schema

    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 400, count).astype(np.int32)
    ones = pa.array(np.arange(count + 1, dtype=np.int32))
    sixteen, many = (pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, pa.py_buffer(rng.bytes(width * count))])
                     for width in (16, 32))  # fmt: skip
    columns = [
        pa.array([f"raw/00000/{number}" for number in range(count)]), pa.array(lengths), pa.array(lengths // 2),
        pa.ListArray.from_arrays(ones, pa.array(lengths // 4)), pa.ListArray.from_arrays(ones, sixteen),
        pa.ListArray.from_arrays(ones, many), sixteen,
    ]  # fmt: skip
    table = pa.Table.from_arrays(columns, schema=entries_schema())
    source = RawSource(name="raw", schema_name="finevision", uri="/raw")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    merge([(source, table)], seed=0, eval_fraction=0.02)
    return {
        "seconds": time.perf_counter() - start,
        "added_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "entries_mib": table.nbytes / 2**20,
    }


def in_process(*arguments: str) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_prepare(rows: int) -> dict[str, Any]:
    """Everything of this part, as plain values."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        os.environ["BARD_HOME"] = str(root / "home")
        write_rows(root / "raw", rows)
        ways: dict[str, dict[str, float]] = {}
        for way in ("released", "ours, look", "ours, bytes"):
            ways[way] = in_process("--way", way, "--folder", str(root / "raw"), "--out", str(root / way.replace(", ", "-")))
            ways[way]["samples_per_core_s"] = rows / ways[way]["cpu_s"]
        scaling = {
            str(count): in_process(
                "--way", "ours, look", "--folder", str(root / "raw"), "--out", str(root / f"p{count}"), "--processes", str(count)
            )["wall_s"]
            for count in range(1, cores + 1)
        }
        peaks = {}
        for count in PREPARED_ROWS:
            write_small_rows(root / f"raw{count}", count)
            found = in_process("--way", "ours, look", "--folder", str(root / f"raw{count}"), "--out", str(root / f"m{count}"))
            peaks[str(count)] = {name: found[name] for name in ("peak_mib", "cpu_s")}
    reference = ways["released"]["samples_per_core_s"]
    return {
        "rows": rows,
        "ways": ways,
        "over_released": {way: body["samples_per_core_s"] / reference for way, body in ways.items() if way != "released"},
        "wall_s_by_processes": scaling,
        "prepare_by_small_rows": peaks,
        "merge_by_rows": {str(count): in_process("--merge", str(count)) for count in MERGED_ROWS},
    }


def measured_before() -> dict[str, Any]:
    """The parts that the result file of such a machine has already."""
    path = result_path("data")
    body = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {part: value for part, value in body.items() if part in MEASURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=list(MEASURES), action="append", help="what to measure; default: everything")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--merge", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(one_way(options.way, options.folder, options.out, options.processes)))
    elif options.merge:
        print(json.dumps(merge_rows(options.merge)))
    else:
        measured = {part: MEASURES[part](options.rows) for part in options.part or MEASURES}
        print(json.dumps(measured, indent=2))
        write_result("data", {**measured_before(), **measured})


MEASURES = {"prepare": measure_prepare, "read": measure_read}

if __name__ == "__main__":
    main()
