"""Reading by number: what was written comes back, wherever the units are, in little memory; what changed is refused."""

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from bard_core.data import units as module
from bard_core.data.reader import Reader
from bard_core.data.units import Units
from bard_core.store import artifacts, storage

from ..written import ROWS_SCHEMA, columns_of, row, write_dataset, write_index, write_units


def some_units():
    image = bytes(range(256))
    return [
        [
            row(f"a{i}", 20 + i, [[5, 9], [12, 20]], [image[i:]], [[1, 4, 4]], split=int(i % 4 == 3), keep=i != 5)
            for i in range(9)
        ],
        [row("b0", 30, [[3, 30]], repeat=2), row("b1", 10, []), row("b2", 40, [[2, 9], [12, 20], [30, 35]], context=2)],
    ]


@pytest.fixture
def small(tmp_path, bard_home):
    return write_dataset(tmp_path / "data", some_units(), rows_per_batch=4)


def test_what_was_written_comes_back(small):
    reader = Reader(small, "train")
    wanted = [values for unit in some_units() for values in unit if values.get("keep", True) and not values.get("split")]
    assert len(reader) == len(wanted) == 9
    for copy in (reader, pickle.loads(pickle.dumps(reader))):
        for example, values in zip(copy, wanted, strict=True):
            assert example.id == values["id"] and example.input_ids_N.tolist() == values["input_ids"]
            assert example.turns == [tuple(turn) for turn in values["turns"]] and example.context == values.get("context", 0)
            assert example.images == values["images"] and example.grid_thw == values["image_grid_thw"]
    assert [example.id for example in Reader(small, "eval")] == ["a3", "a7"]
    assert reader[0].input_ids_N.is_contiguous() and reader[7].id == "b1"


def test_units_are_what_the_datasets_library_maps(small):
    path = next((Path(small.uri).parent / "units").glob("*-00000")) / "rows.arrow"
    mapped = datasets.Dataset.from_file(str(path))
    assert mapped[3]["id"] == "a3" and mapped[3]["images"][0] == Reader(small, "eval")[0].images[0]
    assert mapped.column_names == ROWS_SCHEMA.names


def test_a_laid_out_length_is_what_collate_lays_out(small):
    import torch

    from bard_core.config.sections.noise import NoiseConfig
    from bard_core.data.batches import BatchSpec, collate

    reader = Reader(small, "train")
    for block, complementary in ((None, False), (4, False), (32, True)):
        spec = BatchSpec(block, NoiseConfig(complementary=complementary), 500, 501, 0, torch.arange(1, 400))
        lengths = reader.index.laid_out(block, spec.copies)[reader.samples]
        for i, example in enumerate(reader):
            example.position_ids_CN = torch.arange(len(example.input_ids_N))[None]
            batch = collate([(example, 0)], spec)
            assert batch.input_ids_BL.numel() == lengths[i]
            learned = [at for start, end in example.turns[example.context :] for at in range(start, end)]
            assert batch.clean.index_P.tolist() == [at - 1 for at in learned]
            copies = batch.table_BL.position[batch.table_BL.role > 0]
            assert set(copies[copies < len(example.input_ids_N)].tolist()) >= set(learned) or block is None
            assert not set(copies.tolist()) & {at for start, end in example.turns[: example.context] for at in range(start, end)}


def test_a_changed_unit_is_refused_by_name(small, bard_home):
    assert Reader(small, "train")[0].id == "a0"
    path = next((Path(small.uri).parent / "units").glob("*-00000")) / "rows.arrow"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    with pytest.raises(artifacts.ArtifactError, match=r"s-00000: rows.arrow does not have its recorded sha256"):
        Reader(small, "train")[0]
    Reader(small, "train")[7]  # of the other unit


def test_a_unit_is_hashed_once_a_node(small, bard_home, monkeypatch):
    assert Reader(small, "train")[0].id == "a0"
    monkeypatch.setattr(artifacts, "fetch", lambda *_: pytest.fail("verified again"))
    reader = object.__new__(Reader)
    reader._open(Path(small.uri), small.uri, "train", 1)
    assert reader[1].id == "a1"


@pytest.fixture
def remote(tmp_path, bard_home, s3_root):
    """Six units on S3, of 40 kB each."""
    units = [[row(f"u{unit}r{i}", 8, [[2, 8]], [os.urandom(4000)], [[1, 2, 2]]) for i in range(10)] for unit in range(6)]
    local = write_dataset(tmp_path / "data", units)
    storage.upload_tree(tmp_path / "data", storage.join(s3_root, "data"))
    return local.model_copy(update={"uri": storage.join(s3_root, "data", "dataset")}), units


def test_units_from_elsewhere_are_fetched_when_needed_and_evicted(remote, bard_home):
    ref, units = remote
    reader = Reader(ref, "train", cache_bytes=100_000)

    def kept():
        return {path.parent.name for path in (bard_home / "cache").glob("*/rows.arrow")}

    digest = [unit.manifest_sha256 for unit in reader.index.units]
    assert not kept()
    for i in (0, 10, 0, 20):
        assert reader[i].images == units[i // 10][0]["images"]
    assert kept() == {digest[2], digest[1]} or kept() == {digest[2], digest[0]}
    reader = Reader(ref, "train", cache_bytes=100_000)
    assert [reader[i].id for i in (30, 40, 50, 0)] == ["u3r0", "u4r0", "u5r0", "u0r0"]
    assert len(kept()) == 2 and digest[0] in kept()
    assert reader[31].images == units[3][1]["images"]  # evicted, but still mapped


def test_a_unit_that_is_held_is_not_evicted(remote, bard_home):
    ref, _ = remote
    known = Reader(ref, "train").index.units
    one, other = (Units(ref.uri, known, cache_bytes=1) for _ in range(2))
    with one.held(0) as path:
        other.fetch(1)
        other.fetch(2)
        assert path.exists()
    assert not path.exists()


READ = """
import resource, sys, time
started = time.perf_counter()
import pickle, torch
from bard_core.data.reader import Reader
reader = pickle.load(open(sys.argv[1], "rb"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(len(reader)):
    reader[i]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_small_however_much_is_read(tmp_path, bard_home):
    """400 MB in two units, read to the end."""
    image = os.urandom(1_000_000)
    units = [[row(f"u{unit}r{i}", 8, [[2, 8]], [image], [[1, 2, 2]]) for i in range(200)] for unit in range(2)]
    ref = write_dataset(tmp_path / "data", units)
    (tmp_path / "reader").write_bytes(pickle.dumps(Reader(ref, "train")))
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path / "reader")], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 220_000  # kB; 400,000 were they kept


def test_a_dataset_of_any_size_opens_at_once(tmp_path, bard_home):
    import time

    entries = write_units(tmp_path, [[row("a", 8, [[2, 8]])]])
    one = columns_of([[row("a", 8, [[2, 8]])]])
    many = {name: column.take(np.zeros(300_000, np.int64)) for name, column in one.items()}
    write_index(tmp_path / "staging", entries, many)
    artifacts.commit_directory(tmp_path / "staging", str(tmp_path / "dataset"), kind="dataset")
    started = time.perf_counter()
    reader = Reader(str(tmp_path / "dataset"), "train")
    assert reader[299_999].id == "a" and len(reader) == 300_000
    assert time.perf_counter() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 * 2**20


def test_no_dataset_is_named(tmp_path):
    assert module.units_uri("s3://b/artifacts/prepare/dataset-1/") == "s3://b/artifacts/prepare/units"
    with pytest.raises(artifacts.ArtifactError, match=r"has no manifest\.json"):
        Reader(str(tmp_path), "train")
