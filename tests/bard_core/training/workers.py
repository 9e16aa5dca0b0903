"""Stages in processes of their own: one a rank, over gloo, started in well under a second because the imports are done."""

import json
import multiprocessing
import os
import runpy
import time
import uuid
from pathlib import Path

import torch

from bard_core.config.sections.compute import CheckpointConfig, ParallelConfig
from bard_core.training.checkpoints import dcp
from bard_core.training.curve import read_curve
from bard_core.training.spec import run_of
from bard_core.training.stage import prepare_base

WORKER = Path(__file__).with_name("worker.py")
PRELOAD = [
    "bard_core.training.stage",
    "pyarrow",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "transformers.models.auto.processing_auto",
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "transformers.models.qwen3_vl.processing_qwen3_vl",
]


def start(spec, world=1, folder=None, settings=None, base=None, parallel=None, local_world=None, data_workers=0):
    """Start all ranks of a run; returns their processes, and the uri and the notes' folder of the run."""
    settings = settings or CheckpointConfig()
    run = run_of(spec, settings)
    base = base or prepare_base(spec, run)
    folder = Path(folder or os.environ["BARD_HOME"])
    folder.mkdir(parents=True, exist_ok=True)
    attempt = uuid.uuid4().hex
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    given = {"spec": spec.model_dump_json(), "base": base, "run_uri": run.uri, "settings": settings.model_dump_json()}
    given["parallel"] = (parallel or ParallelConfig()).model_dump_json()
    given["local_world"] = local_world or world
    given["data_workers"] = data_workers
    given["environ"] = dict(os.environ)
    processes = []
    for rank in range(world):
        own = {
            "rank": rank,
            "world": world,
            "rendezvous": str(folder / attempt),
            "notes": str(folder / f"notes-{attempt}-{rank}"),
        }
        process = context.Process(target=runpy.run_path, args=(str(WORKER),), kwargs={"init_globals": {**given, **own}})
        process.start()
        processes.append(process)
    return processes, run, folder / f"notes-{attempt}"


def on_ranks(script, world, timeout_s=120.0, **given):
    """Run a file as every rank of ``world``, with these globals besides ``world`` and ``rank``, to its end."""
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(
            target=runpy.run_path,
            args=(script,),
            kwargs={"init_globals": {"world": world, "rank": rank, **given}, "run_name": "rank"},
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout_s)
        process.kill()


def finish(processes, timeout_s=120.0):
    """Wait for all ranks; their exit codes. A rank whose peers are gone is given a moment, then ended."""
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def train(spec, world=1, **kwargs):
    """Run a stage to its end; (run, samples and noise by step, unless loader processes saw them)."""
    processes, run, notes = start(spec, world, **kwargs)
    codes = finish(processes, timeout_s=600.0 if kwargs.get("data_workers") else 120.0)
    assert codes == [0] * world, f"ranks exited with {codes}"
    return run, read_notes(notes, world) if not kwargs.get("data_workers") else []


def read_notes(notes, world):
    """Of each step, what each rank took: [{"samples", "noise"}]."""
    files = [Path(f"{notes}-{rank}") for rank in range(world)]
    return list(zip(*([json.loads(line) for line in file.read_text().splitlines()] for file in files), strict=True))


def state_of(folder):
    """Everything a local checkpoint holds, as {name: tensor or value}, whatever the number of ranks that wrote it."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = dcp.SafeReader(str(folder)).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype) if isinstance(meta, TensorStorageMetadata) else None
        for name, meta in entries.items()
    }
    dcp.load(state, folder, no_dist=True)
    return state


def same(one, other):
    """Whether two states are equal bit for bit."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def losses(run):
    return [(record["step"], record["loss"]) for record in read_curve(f"{run.uri}/curve.jsonl")]


def parts(run):
    """Every record's losses apart."""
    names = ("step", "loss", "ce", "kl", "teacher_entropy", "ar")
    return [{name: record[name] for name in names if name in record} for record in read_curve(f"{run.uri}/curve.jsonl")]
