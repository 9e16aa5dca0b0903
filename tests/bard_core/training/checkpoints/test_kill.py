"""kill -9 at random moments, of one worker, of all, and in the middle of a save: the run goes on from its last complete
checkpoint and ends with the weights, optimizer and losses of a run that nobody disturbed.

``make test`` kills a few times, ``make test-faults`` more than twenty.
"""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from bard_core.store import storage
from bard_core.training.checkpoints import writer
from bard_core.training.interrupts import EXIT_STOPPED
from bard_core.training.spec import run_of

from ..conftest import stage_specs
from ..workers import finish, losses, same, start, state_of, train

STEPS, WORLD = 12, 2


@pytest.fixture(scope="module")
def undisturbed(tiny_dataset, source_model, tmp_path_factory):
    """(spec, final state, losses) of a run that checkpoints at every step, so that most moments are moments of a save."""
    spec = stage_specs(tiny_dataset, source_model, steps=STEPS, checkpoint_every=1)["pbm"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARD_HOME", str(tmp_path_factory.mktemp("undisturbed")))
        run, _ = train(spec, WORLD)
        return spec, state_of(run.checkpoint(STEPS)), losses(run)


def wait_for(condition, processes, pause_s=0.02, timeout_s=60.0):
    """Until the condition holds; False when the run ended first."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if not any(process.is_alive() for process in processes):
            return False
        assert time.monotonic() < deadline, "the run did not get that far"
        time.sleep(pause_s)
    return True


def progress(run):
    """Newest step that has a checkpoint, whole or not."""
    return max((int(name.split("-")[1]) for name in storage.list_folders(run.uri) if name.startswith("step-")), default=0)


def kill(processes, moment, chance):
    """SIGKILL some ranks; returns how many were alive to be killed."""
    victims = processes if moment == "all" else [chance.choice(processes)]
    alive = [process for process in victims if process.is_alive()]
    for process in alive:
        os.kill(process.pid, signal.SIGKILL)
    return len(alive)


def disturbed_start(spec, moment, chance):
    """Start the run and kill it after a random step, in a save when asked; True when somebody died of it."""
    processes, run, _ = start(spec, WORLD)
    target = progress(run) + chance.randint(0, STEPS // 3)
    if not wait_for(lambda: progress(run) >= target, processes):
        finish(processes)
        return False
    if moment == "save":
        wait_for(lambda: any(Path(run.uri).glob(".step-*/*")), processes, pause_s=0.001)
        time.sleep(chance.random() * 0.01)
    else:
        time.sleep(chance.random() * 0.1)
    died = kill(processes, moment, chance)
    finish(processes, timeout_s=30)
    return died > 0


def trials(moment, few, many):
    return [pytest.param(moment, seed, marks=[] if seed < few else [pytest.mark.faults]) for seed in range(many)]


@pytest.mark.parametrize(("moment", "seed"), [*trials("worker", 1, 8), *trials("all", 0, 6), *trials("save", 1, 10)])
def test_killed_is_undisturbed(moment, seed, undisturbed, bard_home, faults):
    spec, final, curve = undisturbed
    chance = random.Random(f"{moment}{seed}")
    disturbed = disturbed_start(spec, moment, chance)
    run = run_of(spec)
    found = writer.latest_complete(run)
    assert disturbed and (progress(run) == 0) == (found is None)  # what has its name is whole
    train(spec, WORLD)
    assert same(state_of(run.checkpoint(STEPS)), final) and losses(run) == curve
    assert not list(Path(run.uri).glob(".step-*"))
    faults.survived(f"kill -9: {moment}", "weights, optimizer and losses as undisturbed")


def alive(notes):
    """Processes that the ranks of a run have started: loaders and their servers, known by their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(notes).encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
    return found


@pytest.mark.faults
@pytest.mark.parametrize(("moment", "seed"), [("all", 0), ("all", 1), ("worker", 0), ("worker", 1)])
def test_killed_with_loaders_is_undisturbed(moment, seed, undisturbed, bard_home):
    """Batches loaded ahead by processes are lost with the run, come again, and no loader stays behind."""
    spec, final, curve = undisturbed
    chance = random.Random(f"loaders {moment}{seed}")
    processes, run, notes = start(spec, WORLD, data_workers=2)
    assert wait_for(lambda: progress(run) >= chance.randint(1, STEPS // 3), processes, timeout_s=300)
    assert alive(notes) and kill(processes, moment, chance)
    finish(processes, timeout_s=30)
    deadline = time.monotonic() + 30
    while alive(notes):
        assert time.monotonic() < deadline, "a loader outlived its rank"
        time.sleep(0.1)
    train(spec, WORLD, data_workers=2)
    assert same(state_of(run.checkpoint(STEPS)), final) and losses(run) == curve


def test_sigterm_to_one_rank_stops_all_behind_a_checkpoint(undisturbed, bard_home):
    spec, final, curve = undisturbed
    rare = spec.model_copy(update={"train": spec.train.model_copy(update={"checkpoint_every": 10_000})})
    run = run_of(rare)
    processes, _, notes = start(rare, WORLD)
    assert wait_for(lambda: _lines(notes) >= 2, processes, pause_s=0.002)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert finish(processes) == [EXIT_STOPPED] * WORLD
    assert 2 <= progress(run) < STEPS and writer.latest_complete(run) == run.checkpoint(progress(run))
    train(rare, WORLD)
    assert same(state_of(run.checkpoint(STEPS)), final) and losses(run) == curve


def _lines(notes):
    path = Path(f"{notes}-0")
    return len(path.read_text().splitlines()) if path.exists() else 0
