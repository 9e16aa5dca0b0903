"""Checkpoints that cannot lie: real faults on real folders and on an S3 API; nothing torn is believed, nothing whole is lost."""

import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from bard_core.config.sections.compute import CheckpointConfig
from bard_core.store import artifacts, storage
from bard_core.training.checkpoints import dcp, writer
from bard_core.training.checkpoints.writer import CheckpointError, Run, Writer

from .conftest import ORIGIN


class Toy(nn.Module):
    """Holds a model as objectives do."""

    def __init__(self, width=32):
        super().__init__()
        self.model = nn.Linear(width, width)


def toy(width=32, seed=0):
    torch.manual_seed(seed)
    objective = Toy(width)
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=0.1)
    step(objective, optimizer)
    return objective, optimizer


def step(objective, optimizer):
    objective.model(torch.ones(objective.model.in_features)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def write(run, steps, **losses):
    """Checkpoints of a toy at these steps; {step: its weights}."""
    objective, optimizer = toy()
    writer, weights = Writer(run, objective, optimizer), {}
    for number in steps:
        weights[number] = objective.model.weight.detach().clone()
        writer.save(number, {"loss": losses.get(f"at_{number}")})
        step(objective, optimizer)  # goes on while the state is being written
    writer.close()
    return weights


def names(run):
    return [name for name in storage.list_folders(run.uri) if not name.startswith(".")]


def restored(run):
    objective, optimizer = toy(seed=1)
    number, _ = writer.restore(writer.latest_complete(run), objective, optimizer)
    return number, objective.model.weight


def test_training_goes_on_while_the_past_is_written(run):
    weights = write(run, [1, 2, 3])
    assert names(run) == ["step-000002", "step-000003"]
    number, weight = restored(run)
    assert number == 3 and torch.equal(weight, weights[3])
    manifest = artifacts.verify(run.checkpoint(2))
    assert manifest.metadata["origin"] == ORIGIN and (manifest.step, manifest.metadata["world"]) == (2, 1)
    assert sorted(os.listdir(run.uri)) == names(run)


def test_on_an_s3_api(s3_root, bard_home):
    run = Run(storage.join(s3_root, "run"), ORIGIN)
    storage.write_bytes(storage.join(run.checkpoint(3), "__7_0.distcp"), b"torn, by more ranks")
    weights = write(run, [1, 2, 3])
    assert names(run) == ["step-000002", "step-000003"]
    number, weight = restored(run)
    assert number == 3 and torch.equal(weight, weights[3])
    shard = storage.join(run.checkpoint(3), "__0_0.distcp")
    storage.write_bytes(shard, flipped(storage.read_bytes(shard)))
    assert restored(run)[0] == 2
    storage.delete_file(storage.join(run.checkpoint(2), "manifest.json"))
    assert writer.latest_complete(run) is None
    assert list((bard_home / "cache").glob("*")) == [] and list(run.scratch.glob(".step-*")) == []


def flipped(body):
    body = bytearray(body)
    body[len(body) // 2] ^= 1
    return bytes(body)


def spoil_bit(folder):
    shard = folder / "__0_0.distcp"
    shard.write_bytes(flipped(shard.read_bytes()))


def spoil_pickle(folder):
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(folder / "ran")))


class Evil:
    """Makes a link when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.symlink, ("/", str(self.marker))


SPOILS = {
    "flipped bit": (spoil_bit, "does not have its recorded sha256"),
    "truncated shard": (lambda folder: os.truncate(folder / "__0_0.distcp", 100), "has 100 bytes"),
    "missing shard": (lambda folder: (folder / "__0_0.distcp").unlink(), "is missing"),
    "missing manifest": (lambda folder: (folder / "manifest.json").unlink(), "was never committed, or was torn"),
    "torn manifest": (lambda folder: os.truncate(folder / "manifest.json", 100), "is not a manifest"),
    "evil pickle": (spoil_pickle, ".metadata has"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_is_torn_is_skipped_and_the_reason_said(spoil, run, caplog):
    weights = write(run, [1, 2])
    SPOILS[spoil][0](Path(run.checkpoint(2)))
    number, weight = restored(run)
    assert number == 1 and torch.equal(weight, weights[1])
    assert f"skipping checkpoint {run.checkpoint(2)}" in caplog.text and SPOILS[spoil][1] in caplog.text
    assert not list(Path(run.uri).rglob("ran"))


def test_sizes_alone_when_hashes_are_switched_off_but_never_for_the_pickle(run):
    write(run, [1, 2])
    quick = Run(run.uri, ORIGIN, CheckpointConfig(verify_sha256=False))
    spoil_bit(Path(run.checkpoint(2)))
    assert writer.latest_complete(quick) == run.checkpoint(2)
    metadata = Path(run.checkpoint(2)) / ".metadata"
    metadata.write_bytes(flipped(metadata.read_bytes()))
    assert writer.latest_complete(quick) == run.checkpoint(1)


def test_an_evil_pickle_that_was_committed_with_an_honest_manifest_still_does_not_run(run):
    write(run, [1])
    folder = Path(run.checkpoint(1))
    spoil_pickle(folder)
    forged = artifacts.read_manifest(str(folder)).model_copy(update={"files": artifacts.file_entries(folder)})
    artifacts.write_manifest(str(folder), forged)
    assert writer.latest_complete(run) == str(folder)
    with pytest.raises((CheckpointError, pickle.UnpicklingError), match=r"asks for posix\.symlink"):
        restored(run)
    with pytest.raises(pickle.UnpicklingError, match="tampered"):
        dcp.SafeReader(str(folder)).read_metadata()
    assert not (folder / "ran").exists()
    shutil.rmtree(folder)  # as the message says
    assert writer.latest_complete(run) is None


@pytest.mark.parametrize("what", ["config", "dataset", "parent", "teacher"])
def test_another_runs_checkpoint_is_refused_and_the_difference_named(what, run, tmp_path):
    write(run, [1, 2])
    other = Run(run.uri, {**ORIGIN, what: "e" * 64})
    with pytest.raises(CheckpointError, match=f"was written by another run: its {what} is .*, this run's is eeee"):
        writer.latest_complete(other)
    assert names(run) == ["step-000001", "step-000002"]
    for name in names(run):  # moved out of the folder, as the message says
        shutil.move(storage.join(run.uri, name), tmp_path / name)
    assert writer.latest_complete(other) is None
    assert writer.latest_complete(run) is None


def test_another_models_checkpoint_is_refused(run):
    write(run, [1])
    with pytest.raises(CheckpointError, match="does not fit this model"):
        writer.restore(run.checkpoint(1), *toy(width=16))


def test_what_a_kill_left_half_written_is_swept(run):
    write(run, [1])
    torn = Path(run.uri) / ".step-000002.abc"
    torn.mkdir()
    (torn / "__0_0.distcp").write_bytes(b"torn")
    assert writer.latest_complete(run) == run.checkpoint(1)
    writer.sweep(run)
    assert not torn.exists() and names(run) == ["step-000001"]


def test_one_save_in_flight(run, monkeypatch):
    """The second save waits for the first; training does not wait for one."""
    commit = Writer._commit

    def slow(self, *args):
        time.sleep(0.3)
        commit(self, *args)

    monkeypatch.setattr(Writer, "_commit", slow)
    writer = Writer(run, *toy())
    writer.save(1)
    assert not Path(run.checkpoint(1)).exists() and writer.blocked_s < 0.3
    writer.save(2)
    assert Path(run.checkpoint(1)).exists() and not Path(run.checkpoint(2)).exists()
    writer.close()
    assert Path(run.checkpoint(2)).exists() and writer.write_s >= 0.3
    shutil.rmtree(run.uri)
