"""FSDP2 over the process group that a launcher set up; a plain module without one."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bard_core.models.vlm import decoder_layers, vision_tower

# A layer smaller than this is gathered with the root: its own collective would cost more than the memory it saves.
OWN_UNIT_PARAMETERS = 1_000_000


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
