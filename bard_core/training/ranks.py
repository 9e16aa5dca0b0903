"""What ranks tell one another. Answers outside of tensors go over a gloo group, so that none waits for a GPU.

Every function works without a process group too: there is one rank then.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


Group = dist.ProcessGroup | None


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
