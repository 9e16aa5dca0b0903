"""Real Ray Train under fire: kill -9 of a worker and of the driver, SIGTERM, and workers that come and go.

The long form of the fault suite (``make test-faults``); tests/workflows runs Ray undisturbed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from bard_core.config.sections.compute import CheckpointConfig
from bard_core.config.sections.data import DataConfig, LabWorldConfig
from bard_core.config.sections.source import LabModelConfig
from bard_core.config.sections.train import OptimizerConfig, TrainConfig
from bard_core.data.prepare import prepare
from bard_core.store import artifacts, storage
from bard_core.store.refs import CheckpointRef, DatasetRef
from bard_core.training.curve import read_curve
from bard_core.training.interrupts import EXIT_STOPPED
from bard_core.training.spec import StageSpec, run_of
from bard_core.training.stage import prepare_base, run_stage

pytestmark = pytest.mark.faults
DRIVER = Path(__file__).with_name("driver.py")
STEPS = 120


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> DatasetRef:
    world = LabWorldConfig(rows=2, columns=2, alphabet=4, digits=3, min_cells=2, max_cells=3, train_images=24, eval_images=6)
    return prepare(DataConfig(lab=world, max_tokens=512), str(tmp_path_factory.mktemp("dataset") / "lab"))


@pytest.fixture(scope="module")
def spec(dataset) -> StageSpec:
    tiny = LabModelConfig(
        hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate_size=48, vision_hidden_size=16, vision_heads=2
    )
    train = TrainConfig(
        steps=STEPS, batch_size=4, max_tokens_per_row=256, precision="float32", checkpoint_every=10, log_every=5,
        optimizer=OptimizerConfig(lr=1e-3, vision_lr=1e-3, warmup_steps=2),
    )  # fmt: skip
    return StageSpec(stage="source", dataset=dataset, train=train, lab_model=tiny, clean_attention="causal")


class Drive:
    """One driver process and what becomes of it."""

    def __init__(self, spec: StageSpec, home: Path, workers: str) -> None:
        home.mkdir(exist_ok=True)
        (home / "spec.json").write_text(spec.model_dump_json())
        self.temp = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        environment = {
            **os.environ,
            "BARD_HOME": str(home),
            "RAY_TMPDIR": self.temp,
            "RAY_raylet_start_wait_time_s": "240",
        }
        command = [sys.executable, str(DRIVER), str(home / "spec.json"), workers]
        self.log = (home / "driver.log").open("ab")
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.home = home

    def curve(self, spec: StageSpec) -> list[dict[str, float]]:
        return read_curve(storage.join(str(self.home / "checkpoints"), f"{spec.name}-{spec.digest[:16]}", "curve.jsonl"))

    def wait_for_step(self, spec: StageSpec, step: int, timeout_s: float = 420.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not (curve := self.curve(spec)) or curve[-1]["step"] < step:
            assert self.process.poll() is None and time.monotonic() < deadline, self.tail()
            time.sleep(0.05)

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def finish(self, timeout_s: float = 600.0) -> tuple[int, str]:
        try:
            out, _ = self.process.communicate(timeout=timeout_s)
        finally:
            self.process.kill()
        return self.process.returncode, out

    def tail(self) -> str:
        return (self.home / "driver.log").read_text()[-4000:]


def ref_of(out: str) -> CheckpointRef:
    return CheckpointRef.model_validate(json.loads(out.strip().splitlines()[-1]))


@pytest.fixture(scope="module")
def undisturbed(spec, tmp_path_factory):
    """The driver's result when nobody disturbs it."""
    drive = Drive(spec, tmp_path_factory.mktemp("undisturbed") / "home", "2")
    code, out = drive.finish()
    assert code == 0, drive.tail()
    return ref_of(out), [(r["step"], r["loss"]) for r in drive.curve(spec)]


def assert_same(ref: CheckpointRef, curve: list[dict[str, float]], undisturbed) -> None:
    expected, losses = undisturbed
    assert [(r["step"], r["loss"]) for r in curve] == losses
    shards = {entry.path: entry.sha256 for entry in artifacts.verify(ref.uri).files if entry.path.endswith(".distcp")}
    assert shards == {e.path: e.sha256 for e in artifacts.verify(expected.uri).files if e.path.endswith(".distcp")}


@pytest.mark.parametrize("seed", range(2))
def test_a_worker_is_killed(spec, undisturbed, tmp_path, faults, seed):
    chance = random.Random(seed)
    drive = Drive(spec, tmp_path / "home", "2")
    drive.wait_for_step(spec, chance.randint(5, STEPS // 2))
    os.kill(chance.choice(drive.workers()).pid, signal.SIGKILL)
    code, out = drive.finish()
    assert code == 0, drive.tail()
    assert_same(ref_of(out), drive.curve(spec), undisturbed)
    faults.survived("kill -9 of a Ray worker", "weights and losses as undisturbed")


def test_the_driver_is_killed_and_started_again(spec, undisturbed, tmp_path, faults):
    drive = Drive(spec, tmp_path / "home", "2")
    drive.wait_for_step(spec, 20)
    writers = [process for process in drive.descendants() if "RayTrainWorker" in process.name()]
    assert len(writers) == 2
    os.kill(drive.process.pid, signal.SIGKILL)
    drive.process.wait()
    _, alive = psutil.wait_procs(writers, timeout=60)  # Ray's own agents may linger
    assert alive == []  # nobody writes into the run any more
    again = Drive(spec, tmp_path / "home", "2")
    code, out = again.finish()
    assert code == 0, again.tail()
    assert_same(ref_of(out), again.curve(spec), undisturbed)
    faults.survived("kill -9 of the driver", "weights and losses as undisturbed")


def test_sigterm_ends_behind_a_checkpoint_with_the_documented_code(spec, undisturbed, tmp_path, faults):
    drive = Drive(spec, tmp_path / "home", "2")
    drive.wait_for_step(spec, 20)
    asked = time.monotonic()
    os.kill(drive.process.pid, signal.SIGTERM)
    code, _ = drive.finish()
    assert code == EXIT_STOPPED and time.monotonic() - asked < 60, drive.tail()
    run = run_of(spec, CheckpointConfig(root_uri=str(tmp_path / "home" / "checkpoints")))
    newest = [name for name in storage.list_folders(run.uri) if name.startswith("step-")][-1]
    stopped_at = artifacts.verify(storage.join(run.uri, newest)).step
    assert stopped_at is not None and 20 <= stopped_at < STEPS
    again = Drive(spec, tmp_path / "home", "2")
    code, out = again.finish()
    assert code == 0, again.tail()
    assert_same(ref_of(out), again.curve(spec), undisturbed)
    faults.survived("SIGTERM to the driver of a training", "checkpoint, exit 75, then as undisturbed")


def test_a_stopped_run_goes_on_with_as_many_workers_as_there_are(spec, undisturbed, tmp_path, faults):
    drive = Drive(spec, tmp_path / "home", "2")
    drive.wait_for_step(spec, 20)
    os.kill(drive.process.pid, signal.SIGTERM)
    assert drive.finish()[0] == EXIT_STOPPED, drive.tail()
    again = Drive(spec, tmp_path / "home", "1-2")
    code, out = again.finish()
    assert code == 0, again.tail()
    assert ref_of(out).step == STEPS
    assert [r["loss"] for r in again.curve(spec)] == pytest.approx([loss for _, loss in undisturbed[1]], rel=0.05)
    faults.survived("other workers after a stop", "goes on")


def test_ray_and_one_process_train_alike(spec, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("BARD_HOME", str(tmp_path / "home"))
    run = run_of(spec)
    run_stage(spec, prepare_base(spec, run), run)
    alone = [record["loss"] for record in read_curve(storage.join(run.uri, "curve.jsonl"))]
    assert alone[:10] == pytest.approx([loss for _, loss in undisturbed[1]][:10], rel=1e-3)
