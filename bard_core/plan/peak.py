"""What one GPU holds at its peak, by what holds it: FSDP2 with fp32 masters, AdamW, and one micro-batch in flight."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.train import TrainConfig
from bard_core.models.vlm import decoder_layers, vision_tower
from bard_core.training.head import chunk_rows
from bard_core.training.optimizer import rates
from bard_core.training.parallel import OWN_UNIT_PARAMETERS

KEPT_BYTES_PER_LOGIT = {"bfloat16": 10, "float32": 8}  # logits, their fp32 copy where they are bf16, and its gradient


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters. ``layer`` is one decoder layer; ``root`` what is gathered with the root unit."""

    total: int
    text_layers: int
    layer: int
    vision: int
    embeddings: int
    root: int


def count(model: Any) -> Parameters:
    """Count a model's parameters, a tied head once."""
    layers = decoder_layers(model)
    layer = numel(layers[0])
    total = numel(model)
    tower = vision_tower(model)
    text = sum(numel(one) for one in layers)
    return Parameters(
        total=total,
        text_layers=text,
        layer=layer,
        vision=numel(tower) if tower is not None else 0,
        embeddings=numel(model.get_input_embeddings()) * (1 if model.config.tie_word_embeddings else 2),
        root=total - text if layer >= OWN_UNIT_PARAMETERS else total,
    )


def numel_trained(model: Any, train: TrainConfig) -> int:
    """Parameters that have a gradient and AdamW's state."""
    return sum(p.numel() for group, lr in rates(model, train.optimizer).values() if lr > 0 for p in group)


def numel(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _FusedAttention(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps: q, k, v, output and the log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:-1], device="meta", dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("shapes only")


def _attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return _FusedAttention.apply(q, k, v).transpose(1, 2), None


@contextmanager
def _kept_bytes(exclude: set[int]) -> Iterator[list[int]]:
    """Collects the size of every distinct tensor that autograd keeps while the body runs."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []
    result: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in exclude and key not in kept:
            kept[key] = tensor.untyped_storage().nbytes()
            alive.append(tensor)  # so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield result
    result.append(sum(kept.values()))


def layer_activations(model: Any, tokens: int, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes that one decoder layer's backward pass keeps of a row of ``tokens``; norms keep fp32 in either ``dtype``."""
    from transformers import AttentionInterface

    AttentionInterface.register("bard_plan", _attention)
    text = model.config.get_text_config()
    previous, text._attn_implementation = text._attn_implementation, "bard_plan"
    layer = decoder_layers(model)[0].to(dtype).train()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    hidden = torch.empty(1, tokens, text.hidden_size, device="meta", dtype=dtype, requires_grad=True)
    angle = torch.empty(1, tokens, head_dim, device="meta", dtype=dtype)
    try:
        with _kept_bytes({parameter.untyped_storage()._cdata for parameter in layer.parameters()}) as kept:
            layer(hidden, position_embeddings=(angle, angle), attention_mask=None)
    finally:
        text._attn_implementation = previous
        layer.float()
    return kept[0]


def memory(
    model: Any,
    train: TrainConfig,
    compute: ComputeConfig,
    tokens_per_sample: int,
    teacher: int = 0,
    largest: tuple[int, int] | None = None,
    noisy: bool = True,
) -> dict[str, int]:
    """Peak bytes of one GPU by what holds them.

    Sharded over all workers, gradients of micro-batches add up whole on each, in fp32, and are reduced at the step's last one
    (``training.parallel``); sharded inside nodes, they wait as shards. ``teacher``: parameters of a frozen teacher, which every
    GPU holds whole. ``largest``: rows of the largest micro-batch and their length; None: those of mean samples. ``noisy``:
    at most half of a row, its noisy stream, reaches the head; else all of it may.
    """
    gpus = compute.most_workers
    inside_nodes = compute.parallel.shard_over == "node"
    sharers = min(gpus, compute.node.gpus) if inside_nodes else gpus
    parameters = count(model)
    text = model.config.get_text_config()
    width = 2 if train.precision == "bfloat16" else 4
    samples = math.ceil(train.batch_size / gpus / train.accumulation)
    rows = math.ceil(samples * tokens_per_sample / train.max_tokens_per_row)
    row = min(train.max_tokens_per_row, samples * tokens_per_sample)
    rows, row = largest or (rows, row)
    boundary = rows * row * text.hidden_size * width
    layer = rows * layer_activations(model, row, torch.bfloat16 if train.precision == "bfloat16" else torch.float32)
    layers = len(decoder_layers(model))
    trained = numel_trained(model, train)
    shards = {"master weights": 4 * parameters.total, "gradients": 4 * trained, "AdamW": 8 * trained}
    whole = gpus > 1 and train.accumulation > 1 and not inside_nodes
    positions = min(chunk_rows(text.vocab_size, torch.device("cuda")), rows * row // (2 if noisy else 1))
    units = parameters.root + (parameters.layer if parameters.layer >= OWN_UNIT_PARAMETERS else 0)
    return {
        **{name: size // sharers for name, size in shards.items()},
        "whole gradients": 4 * trained if whole else width * units if gpus > 1 else 0,
        "reduce buffers": 4 * units if gpus > 1 else 0,
        "gathered weights": width * (parameters.root + 2 * parameters.layer) if gpus > 1 else 0,
        "activations": layers * boundary + layer if train.activation_checkpointing else layers * layer,
        "attention mask": rows * row * row * (1 + width),
        "logits": positions * text.vocab_size * KEPT_BYTES_PER_LOGIT[train.precision],
        "teacher": width * teacher,
    }
