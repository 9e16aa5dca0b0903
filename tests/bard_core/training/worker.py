"""One rank of a stage, in a process forked from one that has done the imports. ``workers.start`` runs this file by runpy.
It gives it the globals ``environ`` (the caller's: a fork has that of the first start), ``spec``, ``base``, ``run_uri``,
``settings``, ``parallel``, ``rank``, ``world``, ``local_world``, ``rendezvous``, ``notes`` and ``data_workers``.
"""

import json
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist

from bard_core.config.sections.compute import CheckpointConfig, ParallelConfig
from bard_core.data import feed
from bard_core.training.checkpoints.writer import Run
from bard_core.training.interrupts import EXIT_STOPPED, Stopped
from bard_core.training.spec import StageSpec
from bard_core.training.stage import run_stage

os.environ.clear()
os.environ.update(environ)  # noqa: F821
signal.signal(signal.SIGTERM, signal.SIG_DFL)
torch.set_num_threads(1)
spec = StageSpec.model_validate_json(spec)  # noqa: F821
notes = Path(notes)  # noqa: F821
os.environ["BARD_TEST_RUN"] = str(notes)  # by which to find the processes that this one starts
collate = feed.collate


def noted(samples, batch_spec, **rows):
    """Write down which samples this rank takes, and what their noise is."""
    batch = collate(samples, batch_spec, **rows)
    noise = int((batch.input_ids_BL * torch.arange(batch.input_ids_BL.numel()).view_as(batch.input_ids_BL)).sum())
    with notes.open("a") as file:
        file.write(json.dumps({"samples": [[example.id, epoch] for example, epoch in samples], "noise": noise}) + "\n")
    return batch


feed.collate = noted
if world > 1:  # noqa: F821
    os.environ["LOCAL_RANK"] = str(rank)  # noqa: F821
    os.environ["LOCAL_WORLD_SIZE"] = str(local_world)  # noqa: F821
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)  # noqa: F821
code = 0
try:
    run = Run(run_uri, spec.origin, CheckpointConfig.model_validate_json(settings))  # noqa: F821
    placed = ParallelConfig.model_validate_json(parallel)  # noqa: F821
    run_stage(spec, base, run, data_workers=data_workers, parallel=placed)  # noqa: F821
except Stopped:
    code = EXIT_STOPPED
if dist.is_initialized():
    dist.destroy_process_group()
os._exit(code)
