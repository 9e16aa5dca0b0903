"""FSDP2 over the process group that a launcher set up; a plain module without one.

What ranks tell one another outside of tensors goes over a gloo group, so that no answer waits for a GPU.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bard_core.models.vlm import decoder_layers, vision_tower

Value = TypeVar("Value")
Group = dist.ProcessGroup | None


# A layer smaller than this is gathered with the root: its own collective would cost more than the memory it saves.
OWN_UNIT_PARAMETERS = 1_000_000


def rank_and_world() -> tuple[int, int]:
    """(rank, world size); (0, 1) outside a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def new_cpu_group() -> Group:
    """A gloo group of all ranks for a thread of its own (every rank must call this); None outside a process group."""
    return cast(Group, dist.new_group(backend="gloo")) if dist.is_initialized() else None


_main_group: dict[Any, Group] = {}


def cpu_group() -> Group:
    """The main thread's gloo group: the default one where that is gloo. The first call must be made by every rank."""
    if not dist.is_initialized():
        return None
    world = dist.group.WORLD
    if world not in _main_group:
        _main_group.clear()
        _main_group[world] = world if dist.get_backend() == "gloo" else new_cpu_group()
    return _main_group[world]


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier(group=cpu_group())


def from_rank_zero(value: Value, group: Group = None) -> Value:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group or cpu_group())
    return box[0]


def from_every_rank(value: Value, group: Group = None) -> list[Value]:
    """All ranks' values in the order of ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    box: list[Value | None] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value, group=group or cpu_group())
    return cast(list[Value], box)


def largest_over_ranks(value: int) -> int:
    """The largest of all ranks' small numbers."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=cpu_group())
    return int(tensor)


def once_a_node(fetch: Callable[[], Value]) -> Value:
    """Call ``fetch`` on every rank, the node's first rank ahead of the others, which then find what it brought."""
    if int(os.environ.get("LOCAL_RANK", rank_and_world()[0])) != 0:
        barrier()
        return fetch()
    try:
        return fetch()
    finally:
        barrier()


def sum_over_ranks(value: Tensor) -> Tensor:
    """In-place all-reduce; the value itself outside a process group."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def shard(objective: nn.Module, model: Any, precision: str, device: torch.device, frozen_tower: bool) -> None:
    """Shard ``objective`` in place over all ranks: one unit a large decoder layer, the rest in the root.

    A frozen vision tower stays whole on every rank: it runs outside the training step, once an image.

    With "bfloat16", parameters are gathered and computed in bf16, gradients reduced in fp32; the sharded master copy stays fp32.
    Nothing happens outside a process group.
    """
    if not dist.is_initialized():
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    bf16 = precision == "bfloat16"
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
    tower = vision_tower(model) if frozen_tower else None
    whole = set(tower.parameters()) if tower is not None else set()
    for layer in decoder_layers(model):
        if sum(parameter.numel() for parameter in layer.parameters()) >= OWN_UNIT_PARAMETERS:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy, ignored_params=whole)


def mixed_precision(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The forward pass of a model that is not sharded: fp32 weights computed with in bf16. Sharded units see to it themselves."""
    if precision != "bfloat16" or dist.is_initialized():
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def use_activation_checkpointing(model: Any) -> None:
    """Recompute each decoder layer in the backward pass."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
