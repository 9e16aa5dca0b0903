"""AdamW with a learning rate of its own for vision tower, merger and language model; cosine with warm-up and floor."""

import math
from typing import Any

import torch
from torch import nn

from bard_core.config.sections import OptimizerConfig
from bard_core.models.vlm import merger_parameters, vision_tower


def rates(model: Any, config: OptimizerConfig) -> dict[str, tuple[list[nn.Parameter], float]]:
    """Parameters and peak learning rate of each group; parameters of a group with rate 0 lose their gradient."""
    merger_lr = config.lr if config.merger_lr is None else config.merger_lr
    tower = vision_tower(model)
    merger = merger_parameters(model)
    merger_ids = {id(p) for p in merger}
    vision = [p for p in tower.parameters() if id(p) not in merger_ids] if tower else []
    seen = merger_ids | {id(p) for p in vision}
    language = [p for p in model.parameters() if id(p) not in seen]
    return {"language": (language, config.lr), "merger": (merger, merger_lr), "vision": (vision, config.vision_lr)}


def freeze(model: Any, config: OptimizerConfig) -> bool:
    """Take the gradient from groups whose rate is 0; returns whether the whole vision side is frozen. Call before sharding."""
    groups = rates(model, config)
    for parameters, lr in groups.values():
        for parameter in parameters:
            parameter.requires_grad_(lr > 0)
    return groups["merger"][1] == 0 and groups["vision"][1] == 0


def build_optimizer(model: Any, config: OptimizerConfig) -> torch.optim.AdamW:
    """One AdamW over the groups that train; each group keeps its peak rate under "peak_lr"."""
    groups = [
        {"params": parameters, "peak_lr": lr, "lr": lr}
        for parameters, lr in rates(model, config).values()
        if lr > 0 and parameters
    ]
    return torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def schedule(step: int, steps: int, config: OptimizerConfig) -> float:
    """Share of the peak rate at ``step`` (from 0): linear warm-up, then cosine down to ``min_lr_ratio``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
