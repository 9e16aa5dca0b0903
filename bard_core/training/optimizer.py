"""AdamW with a learning rate of its own for each part of the model, decay on matrices alone; cosine with warm-up and floor."""

import math
from typing import Any

import torch
from torch import nn

from bard_core.config.sections.train import OptimizerConfig
from bard_core.models.adapters import is_adapter
from bard_core.models.vlm import merger_parameters, vision_tower


def rates(model: Any, config: OptimizerConfig) -> dict[str, tuple[list[nn.Parameter], float]]:
    """Parameters and peak learning rate of each part; parameters of a part with rate 0 lose their gradient.

    A head tied to the token embeddings belongs to them, any other to the language model. With adapters they train in its place.
    """
    merger_lr = config.lr if config.merger_lr is None else config.merger_lr
    tower = vision_tower(model)
    merger = merger_parameters(model)
    merger_ids = {id(p) for p in merger}
    vision = [p for p in tower.parameters() if id(p) not in merger_ids] if tower else []
    embeddings = list(model.get_input_embeddings().parameters())
    seen = merger_ids | {id(p) for p in [*vision, *embeddings]}
    language = [p for p in model.parameters() if id(p) not in seen]
    adapters = [p for name, p in model.named_parameters() if is_adapter(name)]
    language_lr = 0.0 if config.freeze_language or adapters else config.lr
    return {
        "adapters": (adapters, config.lr),
        "language": (_without(language, adapters), language_lr),
        "embeddings": (embeddings, 0.0 if config.freeze_embeddings else language_lr),
        "merger": (merger, merger_lr),
        "vision": (vision, config.vision_lr),
    }


def _without(parameters: list[nn.Parameter], others: list[nn.Parameter]) -> list[nn.Parameter]:
    left_out = {id(parameter) for parameter in others}
    return [parameter for parameter in parameters if id(parameter) not in left_out]


def undecayed(model: Any) -> set[int]:
    """Ids of parameters that weight decay leaves alone: vectors (norms, biases) and embeddings of tokens and positions."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim < 2 or isinstance(module, nn.Embedding) or "embed" in name or "token" in name
    }


def freeze(model: Any, config: OptimizerConfig) -> bool:
    """Take the gradient from parts whose rate is 0; returns whether the whole vision side is frozen. Call before sharding."""
    groups = rates(model, config)
    for parameters, lr in groups.values():
        for parameter in parameters:
            parameter.requires_grad_(lr > 0)
    return groups["merger"][1] == 0 and groups["vision"][1] == 0


def build_optimizer(model: Any, config: OptimizerConfig) -> torch.optim.AdamW:
    """One AdamW over the parts that train, each in two groups, with and without decay; a group keeps its peak rate as "peak_lr"
    and its floor, a share of it, as "floor".

    Raises:
        ValueError: nothing trains.
    """
    spared = undecayed(model)
    groups = []
    for part, (parameters, lr) in rates(model, config).items():
        own = config.vision_min_lr_ratio if part == "vision" else None
        floor = config.min_lr_ratio if own is None else own
        for spare, decay in ((False, config.weight_decay), (True, 0.0)):
            mine = [p for p in parameters if (id(p) in spared) == spare]
            if lr > 0 and mine:
                groups.append({"params": mine, "peak_lr": lr, "floor": floor, "lr": lr, "weight_decay": decay})
    if not groups:
        raise ValueError("every part of the model is frozen: raise vision_lr or merger_lr, or set freeze_language: false")
    return torch.optim.AdamW(groups, betas=config.betas, fused=True)


def schedule(step: int, steps: int, config: OptimizerConfig) -> tuple[float, float]:
    """(warm, high) at ``step`` (from 0): the share of a rate during the linear warm-up, and of what lies above its floor in the
    cosine that follows."""
    if step < config.warmup_steps:
        return config.warmup_from + (1 - config.warmup_from) * (step + 1) / config.warmup_steps, 1.0
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return 1.0, 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_rates(optimizer: torch.optim.Optimizer, warm: float, high: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * warm * (group["floor"] + (1 - group["floor"]) * high)
