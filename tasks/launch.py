"""Run a training stage on Ray Train and follow it from the driver: one bar, one MLflow run, one final checkpoint.

Resuming is ours, not Ray's: every attempt has a fresh Ray run name, and the workers start from the newest complete checkpoint
of the run's folder, which the spec's digest names. So a stale run is never mistaken for this one, and a run goes on with however
many workers there are. Stages of one process share one Ray: flytekit's plugin starts it or joins the cluster's, else we do.

SIGTERM to the driver leaves a request to stop; the workers checkpoint and end, and the process exits with 75 (run it again).
"""

import logging
import os
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from bard_core.config.sections import ComputeConfig, TrackingConfig
from bard_core.store import artifacts, storage
from bard_core.store.refs import CheckpointRef
from bard_core.tracking import StageRun, stage_run
from bard_core.training.checkpoints.writer import Run, latest_complete
from bard_core.training.curve import CURVE, read_curve
from bard_core.training.interrupts import EXIT_STOPPED, Stopped, ask_to_stop, withdraw
from bard_core.training.spec import StageSpec, checkpoint_ref, run_of
from bard_core.training.stage import prepare_base, run_stage

PASSED_ON = ("AWS_", "BARD_", "HF_", "MLFLOW_", "NCCL_", "TRANSFORMERS_")  # Ray starts workers without the driver's environment

# Every stage would repeat that Ray has been started, or joined already, and how it checks tokens.
for _talker in ("ray._private.worker", "ray._private.authentication.authentication_token_setup"):
    logging.getLogger(_talker).setLevel(logging.ERROR)


def _worker(environment: dict[str, str], config: dict[str, Any]) -> None:
    """Runs on every Ray worker; the process group is Ray's."""
    os.environ.update(environment)
    import ray.train.torch
    import torch

    if ray.train.get_context().get_world_rank() > 0:
        logging.disable(logging.WARNING)
    torch.set_num_threads(config["threads"])
    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    compute = ComputeConfig.model_validate_json(config["compute"])
    spec = StageSpec.model_validate_json(config["spec"])
    try:
        run_stage(
            spec,
            config["base"],
            run_of(spec, compute.checkpoints),
            losing_node=_losing_node,
            data_workers=compute.loaders,
            cache_bytes=int(compute.data_cache_gib * 2**30),
        )
    except Stopped as stopped:
        logging.getLogger(__name__).warning("%s: %s", spec.name, stopped)


def _losing_node() -> bool:
    import ray.train

    return ray.train.get_preemption_info() is not None


def train_on_ray(spec: StageSpec, compute: ComputeConfig, tracking: TrackingConfig, parent_run: str) -> CheckpointRef:
    """Train one stage to its end and return its final checkpoint; a finished run is returned as it is.

    Raises:
        SystemExit: with code 75 when SIGTERM stopped it behind a checkpoint.
    """
    where = run_of(spec, compute.checkpoints)
    if (final := _finished(spec, where, where.settings.verify_sha256)) is None:
        _join_ray()
    base = prepare_base(spec, where)
    with stage_run(tracking, parent_run, spec.stage, spec.name, _params(spec)) as run:
        with _followed(spec, where, run), _stoppable(where, compute.stop_within_s) as asked:
            if final is None:
                _fit(spec, base, compute)
                final = _finished(spec, where, False)
        if asked.is_set():  # a stage that ended all the same is found finished by the next start
            raise SystemExit(EXIT_STOPPED)
        _log_curve(where, run)
    if final is None:
        raise RuntimeError(
            f"{spec.name}: training ended without a checkpoint at step {spec.train.steps}; see the workers' log above"
        )
    return checkpoint_ref(spec, base, final)


def _join_ray() -> None:
    """Before SIGTERM is handled here: ``ray.init`` installs a handler of its own."""
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False)


def _finished(spec: StageSpec, where: Run, hashes: bool) -> str | None:
    """The run's last checkpoint, once it is there and whole; a damaged one is set aside, and its steps are taken again."""
    newest = latest_complete(where, hashes)
    return newest if newest and artifacts.read_manifest(newest).step == spec.train.steps else None


def _fit(spec: StageSpec, base: str, compute: ComputeConfig) -> None:
    # Importing torch on a busy laptop takes longer than Ray's 30 seconds.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    # Bound into the function: Ray's dashboard and state files show train_loop_config and worker_runtime_env, secrets and all.
    environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    environment["BARD_HOME"] = str(storage.home())
    trainer = TorchTrainer(
        partial(_worker, environment),
        train_loop_config={
            "spec": spec.model_dump_json(),
            "compute": compute.model_dump_json(),
            "base": base,
            "threads": compute.cpus_per_worker,
        },
        scaling_config=ScalingConfig(
            num_workers=compute.num_workers,
            use_gpu=compute.use_gpu,
            resources_per_worker={"CPU": compute.cpus_per_worker, **({"GPU": 1} if compute.use_gpu else {})},
        ),
        run_config=RunConfig(
            name=f"{spec.name}-{spec.digest[:8]}-{uuid.uuid4().hex[:8]}",
            storage_path=str(storage.home() / "ray"),
            failure_config=FailureConfig(max_failures=compute.max_failures, max_preemption_failures=-1),
        ),
    )
    trainer.fit()


@contextmanager
def _stoppable(where: Run, within_s: float) -> Iterator[threading.Event]:
    """While the body runs, SIGTERM asks the run to stop, and ends the process when it has not within ``within_s``."""
    asked = threading.Event()
    withdraw(where.uri)
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def stop(number: int, frame: FrameType | None) -> None:
        asked.set()
        ask_to_stop(where.uri)
        signal.setitimer(signal.ITIMER_REAL, within_s)

    def too_late(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_STOPPED)

    before = signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGALRM, too_late)
    try:
        yield asked
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])
        withdraw(where.uri)


@contextmanager
def _followed(spec: StageSpec, where: Run, run: StageRun) -> Iterator[None]:
    """Show the curve as a bar and send it to MLflow while the body runs."""
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(spec, where, run, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)


def _follow(spec: StageSpec, where: Run, run: StageRun, done: threading.Event) -> None:
    seen = 0.0
    with tqdm(total=spec.train.steps, desc=f"{spec.name:<10}", unit="step", mininterval=1.0) as bar:
        while True:
            last = done.wait(timeout=1.0)
            for record in read_curve(storage.join(where.uri, CURVE)):
                if record["step"] > seen:
                    seen = record["step"]
                    run.log_metrics({k: v for k, v in record.items() if k != "step"}, step=int(seen))
                    bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
                    bar.update(int(seen) - bar.n)
            if last:
                return


def _log_curve(where: Run, run: StageRun) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / CURVE
        local.write_bytes(storage.read_bytes(storage.join(where.uri, CURVE)))
        run.log_file(local)


def _params(spec: StageSpec) -> dict[str, Any]:
    """What MLflow compares runs by: every knob of the stage, once, and the digests of what it starts from."""
    knobs = spec.model_dump(include={"block_size", "train"})
    if spec.stage == "source":
        knobs |= spec.model_dump(include={"lab_model"})
    else:
        knobs |= spec.model_dump(include={"clean_attention", "noise", "ar_weight", "reduction", "tail_weight"})
    if spec.swd is not None:  # its other fields stand in the spec itself
        knobs["swd"] = spec.swd.model_dump(exclude={"train", "noise", "ar_weight", "reduction", "tail_weight", "block_sizes"})
    starts = {f"{name}_sha256": key for name, key in spec.origin.items() if name not in ("code", "config") and key != "none"}
    return {"digest": spec.digest, "code": spec.origin["code"], **starts, **_flat(knobs)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
