"""One training step on one rank of a layout, in a process of its own: ``steps_on`` runs this file on every rank by runpy."""

import functools
import os
import runpy
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from bard_core.config.sections.compute import ParallelConfig
from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.train import OptimizerConfig, TrainConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.training import parallel as module
from bard_core.training.loop import train_step
from bard_core.training.objectives import ProgressiveBlockMerging
from bard_core.training.optimizer import build_optimizer
from bard_core.training.parallel import shard, use_activation_checkpointing

SHARED = runpy.run_path(str(Path(__file__).with_name("test_step.py")))  # its tiny model and samples
SAMPLES = 8
SPEC = BatchSpec(4, NoiseConfig(), SHARED["MASK"], SHARED["EOS"], 0, torch.arange(1, 490), "token_mean", max_tokens_per_row=400)


def one_step(rank, world, parts, precision="float32", checkpointing=False, own_units=False, over="all"):
    """One step's gradients, whole, and how often this rank's gradients were reduced, by collective."""
    if own_units:
        module.OWN_UNIT_PARAMETERS = 1
    model = SHARED["tiny_model"]()
    examples = SHARED["examples_for"](model, SAMPLES)
    if checkpointing:
        use_activation_checkpointing(model)
    objective = ProgressiveBlockMerging(model, "block", "mask", 0.0)
    shard(objective, model, precision, torch.device("cpu"), False, ParallelConfig(shard_over=over))
    config = TrainConfig(steps=1, batch_size=SAMPLES, accumulation=parts, precision=precision, optimizer=OptimizerConfig(lr=1e-3))
    mine = examples[rank::world]
    batches = [collate([(example, 0) for example in mine[part::parts]], SPEC) for part in range(parts)]
    objective.train()
    with counted() as calls:
        train_step(objective, build_optimizer(model, config.optimizer), batches, lambda *_: None, config, SPEC, world)
    whole = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
    return torch.cat([gradient.flatten() for gradient in whole]), dict(calls)


@contextmanager
def counted():
    """Counts this process's collectives over gradients (more than a handful of numbers), by name."""
    scatter = next(name for name in ("reduce_scatter_single", "reduce_scatter_tensor") if hasattr(dist, name))
    calls, stock = Counter(), {"scatter": (scatter, getattr(dist, scatter)), "sum": ("all_reduce", dist.all_reduce)}

    def counting(kind, call, *args, **kwargs):
        tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        calls[kind] += max(tensor.numel() for tensor in tensors) > 1000
        return call(*args, **kwargs)

    for kind, (name, call) in stock.items():
        setattr(dist, name, functools.partial(counting, kind, call))
    try:
        yield calls
    finally:
        for name, call in stock.values():
            setattr(dist, name, call)


def steps_on(world, *options, local=None):
    """Rank 0's results of a step with each of these options, on ``world`` processes, ``local`` of which are a node."""
    from .workers import on_ranks

    with tempfile.TemporaryDirectory() as folder:
        on_ranks(__file__, world, local=local or world, folder=folder, options=options)
        return torch.load(f"{folder}/results", weights_only=True)


if __name__ == "rank":
    torch.set_num_threads(1)
    os.environ["LOCAL_WORLD_SIZE"] = str(local)  # noqa: F821
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)  # noqa: F821
    results = [one_step(rank, world, **option) for option in options]  # noqa: F821
    if rank == 0:  # noqa: F821
        torch.save(results, f"{folder}/results")  # noqa: F821
    dist.destroy_process_group()
