"""Logits only where there is loss: the head and its loss in chunks, each chunk's gradient taken while its logits exist.

A full-sequence logit tensor never does, and nothing is computed twice: the backward pass only scales what the forward pass
already holds (one gradient of the hidden states, one of the head), as fused linear-cross-entropy kernels do.

Shape suffixes: P supervised positions, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Bytes of one chunk's fp32 logits. A GPU wants long matrix products; on a CPU they cost memory and gain nothing.
CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
ChunkLoss = Callable[..., Tensor]


def chunk_rows(vocabulary_size: int, device: torch.device) -> int:
    """Positions a chunk."""
    return max(1, CHUNK_BYTES["cuda" if device.type == "cuda" else "cpu"] // (4 * vocabulary_size))


def head_loss(head: nn.Module, loss: ChunkLoss, hidden_PD: Tensor, *tensors_P: Tensor) -> Tensor:
    """Sum over chunks of ``loss(logits [chunk, V], *tensors of the chunk)``, a scalar that may be differentiated once.

    Args:
        head: a linear layer from D to V. loss: returns a scalar, the sum over its positions.
        tensors_P: what the loss needs of every position; they get no gradient.
    """
    weight_VD: Any = head.weight
    bias_V: Any = getattr(head, "bias", None)
    rows = chunk_rows(weight_VD.shape[0], weight_VD.device)
    if torch.is_grad_enabled():
        return _HeadLoss.apply(loss, rows, hidden_PD, weight_VD, bias_V, *tensors_P)  # type: ignore[no-untyped-call]
    total = torch.zeros((), device=hidden_PD.device)
    for hidden, *more in _chunks(rows, hidden_PD, *tensors_P):
        total += loss(F.linear(hidden, weight_VD, bias_V), *more).float()
    return total


def _chunks(rows: int, *tensors_P: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(rows) for tensor in tensors_P), strict=True)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: ChunkLoss, rows: int, hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, *tensors_P: Tensor
    ) -> Tensor:
        _, _, wants_hidden, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        device = hidden_PD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        hidden, weight = hidden_PD.to(dtype), weight_VD.to(dtype)
        bias = None if bias_V is None else bias_V.to(dtype)
        hidden_grad = torch.empty_like(hidden_PD) if wants_hidden else None
        weight_grad = torch.zeros_like(weight_VD) if wants_weight else None
        bias_grad = torch.zeros_like(bias_V) if bias_V is not None and wants_bias else None
        total = torch.zeros((), device=hidden_PD.device)
        start = 0
        for piece, *more in _chunks(rows, hidden, *tensors_P):
            # 1. logits of the chunk                                                     [chunk, V]
            logits = F.linear(piece, weight, bias).requires_grad_()
            # 2. their loss and its gradient
            with torch.enable_grad():
                value = loss(logits, *more)
            (logits_grad,) = torch.autograd.grad(value, logits)
            total += value.detach().float()
            # 3. on to the hidden states and the head; the logits are free to go
            if hidden_grad is not None:
                hidden_grad[start : start + len(piece)] = logits_grad @ weight
            if weight_grad is not None and weight_grad.dtype == dtype:
                weight_grad.addmm_(logits_grad.T, piece)
            elif weight_grad is not None:
                weight_grad += logits_grad.T @ piece
            if bias_grad is not None:
                bias_grad += logits_grad.sum(0)
            start += len(piece)
        ctx.grads = (hidden_grad, weight_grad, bias_grad)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        grads = [None if grad is None else grad.mul_(scale) for grad in ctx.grads]
        ctx.grads = ()
        return None, None, *grads, *[None] * (len(ctx.needs_input_grad) - 5)
