"""What a step costs and what the machine could do: model FLOPs, utilisation (MFU), peak memory."""

import resource
from dataclasses import dataclass
from typing import Any

import torch

from bard_core.models.vlm import decoder_layers

PEAK_FLOPS = {"h200": 989e12, "h100": 989e12, "h20": 148e12, "a100": 312e12, "l40s": 362e12, "l4": 121e12}
"""Dense bf16 peak of accelerators by a part of their name, FLOP/s (vendors' data sheets, without sparsity)."""


@dataclass(frozen=True)
class Shape:
    """What decides a language model's FLOPs: parameters of its layers and head, and the width of attention over all layers."""

    decoder: int
    head: int
    attention: int


def shape_of(model: Any) -> Shape:
    """The shape of a model, whole or sharded."""
    text = model.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layers = decoder_layers(model)
    return Shape(
        decoder=sum(parameter.numel() for layer in layers for parameter in layer.parameters()),
        head=text.vocab_size * text.hidden_size,
        attention=text.num_attention_heads * head_dim * len(layers),
    )


def forward_flops(shape: Shape, tokens: float, supervised: float, context: float = 0.0) -> float:
    """FLOPs of one forward pass over ``tokens``, ``supervised`` of which reach the head.

    2 a parameter and token, and 4 a unit of attention width, token and token seen (``context``; 0 leaves attention scores out).
    """
    return 2.0 * (shape.decoder * tokens + shape.head * supervised) + 4.0 * shape.attention * tokens * context


def step_flops(shape: Shape, tokens: float, supervised: float) -> float:
    """FLOPs that a training step needs: a forward and a backward pass, which costs two.

    Attention scores, vision tower and recomputation are not counted, so utilisation comes out a little low.
    """
    return 3.0 * forward_flops(shape, tokens, supervised)


def utilisation(flops_per_s: float, device: torch.device, world: int) -> float | None:
    """Share of the accelerators' peak (MFU); None on a CPU or an accelerator that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    return None if peak is None else flops_per_s / (peak * world)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: allocated on the accelerator, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
