"""FSDP2 over the process group that a launcher set up; a plain module without one."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bard_core.config.sections.compute import ParallelConfig
from bard_core.models.vlm import decoder_layers, vision_tower

# A layer smaller than this is gathered with the root: its own collective would cost more than the memory it saves.
OWN_UNIT_PARAMETERS = 1_000_000


def shard(
    objective: nn.Module,
    model: Any,
    precision: str,
    device: torch.device,
    frozen_tower: bool,
    parallel: ParallelConfig = ParallelConfig(),
) -> None:
    """Shard ``objective`` in place, over all ranks or inside each node: one unit a large decoder layer, the rest in the root.

    A frozen vision tower stays whole on every rank: it runs outside the training step, once an image.

    With "bfloat16", parameters are gathered and computed in bf16, gradients reduced in fp32; the sharded master copy stays fp32.
    Outside a process group nothing is sharded.

    Raises:
        ValueError: ranks do not fill whole nodes (``LOCAL_WORLD_SIZE`` each).
    """
    if not dist.is_initialized():
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = _mesh(device, parallel)
    bf16 = precision == "bfloat16"
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
    tower = vision_tower(model) if frozen_tower else None
    whole = set(tower.parameters()) if tower is not None else set()
    for layer in decoder_layers(model):
        if sum(parameter.numel() for parameter in layer.parameters()) >= OWN_UNIT_PARAMETERS:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy, ignored_params=whole)
    register_fsdp_forward_method(objective, "measure")


def _mesh(device: torch.device, parallel: ParallelConfig) -> Any:
    """All ranks in a row; or a row of nodes, which replicate what each of them shards."""
    from torch.distributed.device_mesh import init_device_mesh

    world = dist.get_world_size()
    if parallel.shard_over == "all":
        return init_device_mesh(device.type, (world,))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world % local:
        raise ValueError(
            f"compute.parallel.shard_over is node, but {world} workers do not fill nodes of {local}: "
            "set num_workers to a multiple, or shard over all"
        )
    return init_device_mesh(device.type, (world // local, local), mesh_dim_names=("replicate", "shard"))


def reduce_at(objective: nn.Module, last: bool) -> None:
    """Say before a micro-batch's backward pass whether it is the step's last: only then do gradients cross nodes.

    Sharded over all ranks, gradients wait whole on each, in the dtype they are reduced in. Sharded inside a node, they are
    reduced there each time, over its fast links, and wait as shards.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    if not isinstance(objective, FSDPModule):
        return
    inside_nodes = any(isinstance(p, DTensor) and p.device_mesh.ndim == 2 for p in objective.parameters())
    objective.set_requires_gradient_sync(last or inside_nodes)
    objective.set_requires_all_reduce(last)


def let_go(objective: nn.Module) -> None:
    """Give back what a forward pass gathered that no backward pass follows."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(objective, FSDPModule):
        objective.reshard()


def mixed_precision(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The forward pass of a model that is not sharded: fp32 weights computed with in bf16. Sharded units see to it themselves."""
    if precision != "bfloat16" or dist.is_initialized():
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def use_activation_checkpointing(model: Any) -> None:
    """Recompute each decoder layer in the backward pass."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compile each decoder layer by itself, before the model is sharded. One compilation serves all, and rows of any length."""
    for layer in decoder_layers(model):
        layer.compile(backend=backend, dynamic=True)
