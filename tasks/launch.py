"""Run a training stage on Ray Train and follow it from the driver: one bar, one MLflow run, one final checkpoint.

Resuming is ours, not Ray's: every attempt has a fresh Ray run name, and the workers start from the newest complete checkpoint
of the run's folder, which the spec's digest names. So a stale run is never mistaken for this one, and a run goes on with however
many workers there are. Stages of one process share one Ray: flytekit's plugin starts it or joins the cluster's, else we do.

Ray trains in a thread; this one looks after it. A signal leaves a request to stop, the workers checkpoint and end, and the
process exits with 75 (run it again). What hangs because something of Ray is dead is ended and tried again. A run's folder is
claimed: of two drivers that want it, the second waits and finds the run finished.
"""

import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bard_core import known_warnings
from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.storage import TrackingConfig
from bard_core.data.batches import noisy_copies
from bard_core.data.fit import RowsTooShortError, check_rows
from bard_core.data.reader import Reader
from bard_core.preflight import PreflightError
from bard_core.store import artifacts, claims, storage, times
from bard_core.store.claims import Claim
from bard_core.store.refs import CheckpointRef
from bard_core.tracking import StageRun, stage_run
from bard_core.training.checkpoints import retention
from bard_core.training.checkpoints.writer import Run, latest_complete
from bard_core.training.curve import CURVE
from bard_core.training.interrupts import Stopped, ask_to_stop, withdraw
from bard_core.training.notices import leave_notices
from bard_core.training.spec import StageSpec, checkpoint_ref, run_of
from bard_core.training.stage import prepare_base, run_stage
from tasks import progress, ray_local, stopping
from tasks.follow import Follower, Watchdog

ray_local.apart()  # before flytekit's plugin starts a Ray
log = logging.getLogger(__name__)
CONTROLLER_FAILURES = 3  # a worker group that does not start within 180 s, say; Ray's default is to try for ever
PASSED_ON = ("AWS_", "BARD_", "HF_", "MLFLOW_", "NCCL_", "TRANSFORMERS_")  # Ray starts workers without the driver's environment


def _worker(environment: dict[str, str], config: dict[str, Any]) -> None:
    """Runs on every Ray worker; the process group is Ray's."""
    os.environ.update(environment)
    import ray.train.torch
    import torch
    from transformers.utils.logging import disable_progress_bar

    known_warnings.hush()
    disable_progress_bar()  # loading weights, once a worker
    if ray.train.get_context().get_world_rank() > 0:
        logging.disable(logging.WARNING)
    torch.set_num_threads(config["threads"])
    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    compute = ComputeConfig.model_validate_json(config["compute"])
    spec = StageSpec.model_validate_json(config["spec"])
    claim = Claim.model_validate_json(config["claim"])
    run = run_of(spec, compute.checkpoints)
    leave_notices(run.uri)
    try:
        run_stage(
            spec,
            config["base"],
            run,
            losing_node=_losing_node,
            claim=claim,
            data_workers=compute.loaders,
            cache_bytes=int(compute.data_cache_gib * 2**30),
            parallel=compute.parallel,
        )
    except Stopped as stopped:
        logging.getLogger(__name__).warning("%s: %s", spec.name, stopped)


def _losing_node() -> bool:
    import ray.train

    return ray.train.get_preemption_info() is not None


class AttemptHung(RuntimeError):
    """Training stood still because something of Ray is dead: says what."""


def train_on_ray(spec: StageSpec, compute: ComputeConfig, tracking: TrackingConfig, parent_run: str) -> CheckpointRef:
    """Train one stage to its end and return its final checkpoint; a finished run is returned as it is.

    Raises:
        SystemExit: with code 75 when it was stopped behind a checkpoint.
        PreflightError: the cluster does not hold what ``compute`` asks for.
    """
    where = run_of(spec, compute.checkpoints)
    with claims.exclusive(f"{where.uri}.claim") as claim:
        if (final := _finished(spec, where, where.settings.verify_sha256)) is None:
            _check_rows(spec)
            ray_local.join()
            ray_local.check(compute)
        base = prepare_base(spec, where)
        with stage_run(tracking, parent_run, spec.stage, spec.name, _params(spec)) as run:
            if final is None:
                progress.begin(spec.name)
            follower = Follower(where.uri, spec.name, spec.train.steps, run)
            if final is None:
                before, started = follower.begin(), time.perf_counter()
                with stopping.deferred(spec.name):
                    _train(spec, where, compute, follower, partial(_fit, spec, base, compute, claim))
                final = _finished(spec, where, False)
                times.note(spec.name, time.perf_counter() - started, follower.look() - before)
            follower.close()
            if stopping.asked():
                stopping.leave(f"stopped at {_reached(where)} of {spec.train.steps}")
            _log_curve(where, run)
    if final is None:
        raise RuntimeError(
            f"{spec.name}: training ended without a checkpoint at step {spec.train.steps}; see the workers' log above"
        )
    return checkpoint_ref(spec, base, final)


def _check_rows(spec: StageSpec) -> None:
    block_size = None if spec.stage == "source" else spec.block_size
    try:
        copies = noisy_copies(block_size, spec.noise)
        check_rows(Reader(spec.dataset, "train"), block_size, copies, spec.train.max_tokens_per_row)
    except RowsTooShortError as error:
        raise PreflightError(f"{spec.name}: {error}") from error


def _reached(where: Run) -> str:
    steps = retention.steps(where.uri)
    return f"step {steps[-1]}" if steps else "step 0"


def _train(spec: StageSpec, where: Run, compute: ComputeConfig, follower: Follower, fit: Callable[[], None]) -> None:
    """Fit, again with a new Ray where an attempt hangs, as often as a worker may fail."""
    withdraw(where.uri)
    for attempt in range(compute.max_failures + 1):
        try:
            return _attend(spec, where, compute, follower, fit)
        except AttemptHung as hung:
            if stopping.asked():
                return
            if attempt == compute.max_failures:
                raise
            log.error(
                "%s: %s; starting it again from its last checkpoint (%d of %d)",
                spec.name,
                hung,
                attempt + 1,
                compute.max_failures,
            )
            ray_local.restart()


def _attend(spec: StageSpec, where: Run, compute: ComputeConfig, follower: Follower, fit: Callable[[], None]) -> None:
    """Call ``fit`` in a thread and look after it: the curve, requests to stop, and whether it still can move.

    Raises:
        AttemptHung: see ``Watchdog``. SystemExit: it did not stop within ``compute.stop_within_s``. What ``fit`` raises.
    """
    failure: list[BaseException] = []
    thread = threading.Thread(target=_caught, args=(fit, failure), daemon=True)
    thread.start()
    watchdog, requested, since = Watchdog(), False, 0.0
    while thread.is_alive():
        thread.join(timeout=0.5)
        step = follower.look()
        since = since or (time.monotonic() if stopping.asked() else 0.0)
        if since and not requested:
            with suppress(storage.StorageError):  # a place that is away for a moment is asked again
                ask_to_stop(where.uri)
                requested = True
        if since and time.monotonic() - since > compute.stop_within_s:
            stopping.leave(
                f"no checkpoint within {compute.stop_within_s:.0f} s; stopped at {_reached(where)} of {spec.train.steps}"
            )
        if thread.is_alive() and (trouble := watchdog.look(step)) is not None:
            raise AttemptHung(f"{trouble}, and nothing has moved since step {step}")
    if failure and not stopping.asked():
        if trouble := ray_local.trouble():
            raise AttemptHung(f"{trouble} ({failure[0]})") from failure[0]
        raise failure[0]
    withdraw(where.uri)


def _caught(fit: Callable[[], None], failure: list[BaseException]) -> None:
    try:
        fit()
    except BaseException as error:  # noqa: BLE001 - the thread that attends raises it
        failure.append(error)


def _finished(spec: StageSpec, where: Run, hashes: bool) -> str | None:
    """The run's last checkpoint, once it is there and whole; a damaged one is set aside, and its steps are taken again."""
    newest = latest_complete(where, hashes)
    return newest if newest and artifacts.read_manifest(newest).step == spec.train.steps else None


def _fit(spec: StageSpec, base: str, compute: ComputeConfig, claim: Claim) -> None:
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
            "claim": claim.model_dump_json(),
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
            failure_config=FailureConfig(
                max_failures=compute.max_failures, max_preemption_failures=-1, controller_failure_limit=CONTROLLER_FAILURES
            ),
        ),
    )
    trainer.fit()


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
    if spec.swd is not None:  # what is left out stands in the spec itself
        knobs["swd"] = spec.swd.model_dump(
            exclude={"train", "noise", "ar_weight", "reduction", "tail_weight", "students", "teacher"}
        )
    starts = {f"{name}_sha256": key for name, key in spec.origin.items() if name not in ("code", "config") and key != "none"}
    return {"digest": spec.digest, "code": spec.origin["code"], **starts, **_flat(knobs)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
