"""What a step costs and what the machine could do: model FLOPs, utilisation (MFU), peak memory."""

import resource
from typing import Any

import torch

from bard_core.models.vlm import decoder_layers

# Dense bf16 peak of accelerators by a part of their name, FLOP/s (vendors' data sheets, without sparsity).
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "H20": 148e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


def decoder_parameters(model: Any) -> int:
    """Parameters of the decoder layers, over all ranks."""
    return sum(parameter.numel() for layer in decoder_layers(model) for parameter in layer.parameters())


def step_flops(decoder: int, head: int, tokens: float, supervised: float) -> float:
    """FLOPs that a step needs: 6 a parameter and token, in the layers for every token, in the head for supervised ones.

    Attention scores, vision tower and recomputation are not counted, so utilisation comes out a little low.
    """
    return 6.0 * (decoder * tokens + head * supervised)


def utilisation(flops_per_s: float, device: torch.device, world: int) -> float | None:
    """Share of the accelerators' peak (MFU); None on a CPU or an accelerator that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    return None if peak is None else flops_per_s / (peak * world)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: allocated on the accelerator, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
