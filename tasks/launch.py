"""Run a training stage on Ray Train and follow it from the driver: one bar, one MLflow run, one final checkpoint.

Resuming is ours, not Ray's: every attempt has a fresh Ray run name, and the workers start from the newest complete checkpoint
of the run folder, which the spec's digest names. So a stale run is never mistaken for this one.
"""

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bard_core import artifacts, storage
from bard_core.artifacts import CheckpointRef
from bard_core.config import ComputeConfig, TrackingConfig
from bard_core.tracking import StageRun, stage_run
from bard_core.training.checkpoint import latest_complete
from bard_core.training.stage import CURVE, StageSpec, checkpoint_ref, prepare_base, read_curve, run_folder, run_stage


def _worker(config: dict[str, Any]) -> None:
    """Runs on every Ray worker; the process group is Ray's."""
    import torch

    os.environ["BARD_HOME"] = config["home"]
    torch.set_num_threads(config["threads"])
    run_stage(StageSpec.model_validate_json(config["spec"]), Path(config["base"]))


def train_on_ray(spec: StageSpec, compute: ComputeConfig, tracking: TrackingConfig, parent_run: str) -> CheckpointRef:
    """Train one stage to its end and return its final checkpoint; a finished run is returned as it is."""
    base = prepare_base(spec)
    params = {"digest": spec.digest, "block_size": spec.block_size, **_flat(spec.train.model_dump(), "train")}
    with stage_run(tracking, parent_run, spec.stage, spec.name, params) as run:
        with _followed(spec, run):
            _fit(spec, base, compute)
        run.log_file(run_folder(spec) / CURVE)
    parent = spec.parent.key if spec.parent else "none"
    final = latest_complete(run_folder(spec), spec.digest, parent)
    if final is None or artifacts.read_manifest(str(final)).step != spec.train.steps:
        raise RuntimeError(
            f"{spec.name}: training ended without a checkpoint at step {spec.train.steps}; see the workers' log above"
        )
    return checkpoint_ref(spec, base, final)


def _fit(spec: StageSpec, base: Path, compute: ComputeConfig) -> None:
    os.environ.setdefault(
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180"
    )  # importing torch on a busy laptop takes longer than Ray's 30
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "spec": spec.model_dump_json(),
            "base": str(base),
            "home": str(storage.home()),
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
            failure_config=FailureConfig(max_failures=compute.max_failures),
        ),
    )
    trainer.fit()


@contextmanager
def _followed(spec: StageSpec, run: StageRun) -> Iterator[None]:
    """Show the curve as a bar and send it to MLflow while the body runs."""
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(spec, run, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)


def _follow(spec: StageSpec, run: StageRun, done: threading.Event) -> None:
    seen = 0.0
    with tqdm(total=spec.train.steps, desc=f"{spec.name:<10}", unit="step", mininterval=1.0) as bar:
        while True:
            last = done.wait(timeout=1.0)
            for record in read_curve(run_folder(spec) / CURVE):
                if record["step"] > seen:
                    seen = record["step"]
                    run.log_metrics({k: v for k, v in record.items() if k != "step"}, step=int(seen))
                    bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
                    bar.update(int(seen) - bar.n)
            if last:
                return


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}.{key}") if isinstance(value, dict) else {f"{prefix}.{key}": value})
    return flat
