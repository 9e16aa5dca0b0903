"""The reading part of ``data.py``: a million rows opened and read by number, and the useful share of tokens."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bard_core.data import index
from bard_core.data.bins import share_out
from bard_core.data.order import Order
from bard_core.data.records import rows_schema
from bard_core.store import artifacts

ROWS, ROWS_A_UNIT, READS = 1_000_000, 2000, 4000
IMAGE_BYTES = 20_000
ROW_TOKENS, BLOCK = 16_384, 32


def measure_read(rows: int) -> dict[str, Any]:
    """Everything of this part, as plain values. ``rows`` of the small dataset that the large one is compared with."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["BARD_HOME"] = str(Path(scratch) / "home")
        found = {}
        for count in (max(rows, 10_000), 100_000, ROWS):
            folder = Path(scratch) / str(count)
            write_dataset(folder, count)
            command = [sys.executable, "-c", "import sys, _reading; _reading.read(sys.argv[1])", str(folder / "dataset")]
            done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
            found[str(count)] = json.loads(done.stdout.splitlines()[-1])
    return {"by_rows": found, "useful_share": {name: useful(name) for name in MIXES}}


def write_dataset(folder: Path, rows: int) -> None:
    """``rows`` samples of one image each. All units are links to one unit's bytes, which the disk could not hold so often."""
    rng = np.random.default_rng(0)
    unit: dict[str, list[Any]] = {name: [] for name in rows_schema().names}
    lengths = np.exp(rng.normal(np.log(900), 0.9, ROWS_A_UNIT)).clip(64, 8192).astype(int)
    for number, length in enumerate(lengths):
        values = {
            "id": f"row {number}", "source": "s", "messages": "[]", "images": [rng.bytes(IMAGE_BYTES)],
            "input_ids": rng.integers(0, 1000, length).astype(np.int32), "turns": [[int(length) // 2, int(length)]],
            "image_grid_thw": [[1, 8, 8]], "num_visual_tokens": 16, "num_supervised_tokens": int(length) // 2, "answer": "",
        }  # fmt: skip
        for name in unit:
            unit[name].append(values.get(name))
    first = folder / "units" / "u-0"
    staging = folder / "staging"
    staging.mkdir(parents=True)
    with pa.ipc.new_stream(staging / "rows.arrow", rows_schema()) as stream:
        stream.write_table(pa.Table.from_pydict(unit, rows_schema()), max_chunksize=64)
    size = (staging / "rows.arrow").stat().st_size
    manifest = artifacts.commit_directory(staging, str(first), kind="unit")
    units = rows // ROWS_A_UNIT
    for number in range(1, units):
        other = folder / "units" / f"u-{number}"
        other.mkdir()
        for file in first.iterdir():
            os.link(file, other / file.name)
    entries = [
        {"name": f"u-{number}", "manifest_sha256": manifest.digest, "rows": ROWS_A_UNIT, "bytes": size} for number in range(units)
    ]
    places = np.arange(rows, dtype=np.int32)
    turns = np.tile((lengths - lengths // 2).astype(np.int32), units)
    one = pa.array(np.arange(rows + 1, dtype=np.int32))
    columns = {
        "id": pa.array([f"row {number}" for number in range(rows)]),
        "unit": pa.array(places // ROWS_A_UNIT),
        "row": pa.array(places % ROWS_A_UNIT),
        "source": pa.array(["s"] * rows).dictionary_encode(),
        "split": pa.array(np.zeros(rows, np.int8)),
        "keep": pa.array(np.ones(rows, bool)),
        "reason": pa.array([""] * rows).dictionary_encode(),
        "tokens": pa.array(np.tile(lengths.astype(np.int32), units)),
        "visual_tokens": pa.array(np.full(rows, 16, np.int32)),
        "turn_lengths": pa.ListArray.from_arrays(one, pa.array(turns)),
        "image_hashes": pa.ListArray.from_arrays(
            one, pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(rng.bytes(16 * rows))])
        ),
        "repeat": pa.array(np.ones(rows, np.int16)),
    }
    staging.mkdir()
    (staging / index.UNITS_FILE).write_text(json.dumps(entries))
    index.write(staging / index.FILE, columns)
    artifacts.commit_directory(staging, str(folder / "dataset"), kind="dataset")


def read(uri: str) -> None:
    """Open and read in the walk's order; prints times and this process's memory. Runs in a process of its own."""
    from bard_core.data.reader import Reader

    def resident_mib() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, started = resident_mib(), time.perf_counter()
    reader = Reader(uri, "train")
    samples = reader.samples
    order = Order(reader.index.unit[samples], reader.index.repeat[samples], seed=0)
    lengths = reader.index.laid_out(BLOCK, 1)[samples]
    picks = order.picks(0, 256)
    reader[picks[0][0]]
    start_s = time.perf_counter() - started
    rows_s, steps_s = [], []
    for step in range(READS // 256 + 1):
        started = time.perf_counter()
        picks = order.picks(step * 256, (step + 1) * 256)
        share_out(lengths[[sample for sample, _ in picks]].tolist(), ROW_TOKENS, 8, 4)
        steps_s.append(time.perf_counter() - started)
        for sample, _ in picks:
            started = time.perf_counter()
            reader[sample]
            rows_s.append(time.perf_counter() - started)
    print(
        json.dumps(
            {
                "start_s": start_s,
                "row_ms_median": 1e3 * statistics.median(rows_s),
                "row_ms_mean": 1e3 * statistics.mean(rows_s),
                "plan_a_step_ms": 1e3 * statistics.median(steps_s),
                "imports_mib": before,
                "peak_mib": resident_mib(),
            }
        )
    )


def lab(rng: np.random.Generator, samples: int) -> tuple[list[int], int]:
    """Laid-out lengths like those of configs/lab.yaml at block 4, and its row length."""
    clean = rng.integers(60, 80, samples)
    return (clean + -(-rng.integers(20, 30, samples) // 4) * 4).tolist(), 256


def lognormal(rng: np.random.Generator, samples: int) -> tuple[list[int], int]:
    """64 to 8192 clean tokens, two fifths of them answers."""
    clean = np.exp(rng.normal(np.log(900), 0.9, samples)).clip(64, 8192).astype(int)
    return (clean + -(-(clean * 0.4).astype(int) // BLOCK) * BLOCK).tolist(), ROW_TOKENS


MIXES = {"lab": lab, "log-normal 64 to 8192": lognormal}


def useful(mix: str) -> dict[str, dict[str, float]]:
    """By ranks and samples a step: useful tokens of all computed (padding), and of all that ranks in step have time for."""
    shares = {}
    for world, a_rank in ((1, 256), (8, 32), (64, 4), (64, 32)):
        computed = waited = tokens = 0
        for seed in range(10):
            lengths, row_tokens = MIXES[mix](np.random.default_rng(seed), world * a_rank)
            (part,) = share_out(lengths, row_tokens, world, 1)
            cells = [len(rows) * max(sum(lengths[sample] for sample in row) for row in rows) for rows in part]
            computed, waited, tokens = computed + sum(cells), waited + world * max(cells), tokens + sum(lengths)
        shares[f"{world} ranks, {world * a_rank} samples"] = {"useful": tokens / computed, "in_step": tokens / waited}
    return shares
