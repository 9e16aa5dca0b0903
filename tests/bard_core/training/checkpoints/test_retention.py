"""Which checkpoints stay: nothing that a run may need to go on from is deleted to make room."""

import shutil
from pathlib import Path

import pytest

from bard_core.config.sections.compute import CheckpointConfig
from bard_core.store import artifacts, storage
from bard_core.training.checkpoints import retention, writer
from bard_core.training.checkpoints.writer import Run

from .test_writer import ORIGIN, names, restored, spoil_bit, write


@pytest.fixture
def run(tmp_path, bard_home):
    return Run(str(tmp_path / "run"), ORIGIN, CheckpointConfig(keep_last=2))


def test_the_newest_the_best_and_the_registered_stay(run):
    run = Run(run.uri, ORIGIN, CheckpointConfig(keep_last=2, keep_best=1))
    write(run, [1, 2, 3], at_1=3.0, at_2=1.0, at_3=2.0)
    retention.keep(run.checkpoint(1), "a model of it is registered")
    assert names(run) == ["step-000002", "step-000003"]  # 1 went before it was registered, with its marker only
    retention.keep(run.checkpoint(3), "a model of it is registered")
    write(run, [4, 5, 6], at_4=5.0, at_5=4.0, at_6=6.0)
    assert names(run) == ["step-000002", "step-000003", "step-000005", "step-000006"]
    assert all(artifacts.verify(storage.join(run.uri, name)) for name in names(run))


def test_a_run_that_went_back_behind_damaged_checkpoints_keeps_what_it_writes(run):
    write(run, [8, 9])
    for step in (8, 9):
        spoil_bit(Path(run.checkpoint(step)))
    assert writer.latest_complete(run) is None
    write(run, [1, 2, 3])
    assert restored(run)[0] == 3 and retention.steps(run.uri) == [2, 3]
    assert all(Path(f"{run.checkpoint(step)}.damaged").is_dir() for step in (8, 9)), "set aside, not deleted"


def test_a_torn_checkpoint_does_not_take_the_place_of_a_whole_one(run):
    write(run, [1, 2])
    (Path(run.checkpoint(3)) / "shards").mkdir(parents=True)
    write(run, [4])
    assert retention.steps(run.uri) == [2, 4]


def test_steps_beyond_six_digits_are_newer(run):
    write(run, [999_999, 1_000_000, 1_000_001])
    assert restored(run)[0] == 1_000_001 and retention.steps(run.uri) == [1_000_000, 1_000_001]


def test_a_copy_under_another_name_is_nobodys_checkpoint(run):
    write(run, [1])
    shutil.copytree(run.checkpoint(1), f"{run.checkpoint(1)}-copy")
    write(run, [2, 3])
    assert names(run) == ["step-000001-copy", "step-000002", "step-000003"]
