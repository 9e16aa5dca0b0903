"""FSDP2 over the process group that a launcher set up; a plain module without one."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bard_core.models.vlm import backbone, vision_tower


# A layer smaller than this is gathered with the root: its own collective would cost more than the memory it saves.
OWN_UNIT_PARAMETERS = 1_000_000


def rank_and_world() -> tuple[int, int]:
    """(rank, world size); (0, 1) outside a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def sum_over_ranks(value: Tensor) -> Tensor:
    """In-place all-reduce; the value itself outside a process group."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def decoder_layers(model: Any) -> list[nn.Module]:
    """The decoder layers of the text backbone: the units of sharding and activation checkpointing."""
    body = backbone(model)
    text = getattr(body, "language_model", body)
    layers = getattr(text, "layers", None)
    if layers is None:
        raise ValueError(f"{type(model).__name__}: no decoder layers at model.language_model.layers or model.layers")
    return list(layers)


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


def use_activation_checkpointing(model: Any) -> None:
    """Recompute each decoder layer in the backward pass."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
