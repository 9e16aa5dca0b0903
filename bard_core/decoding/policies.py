"""Which masked positions a denoising step fills: small functions over confidences, all [B, block].

Every policy fills at least one masked position of a row that has any, so denoising ends.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Strategy = Literal["static", "dynamic"]
Policy = Callable[[Tensor, Tensor, int], Tensor]


def quota(block_size: int, steps: int, step: int) -> int:
    """Positions that the static schedule fills in step ``step``: block_size / steps, the remainder first."""
    base, more = divmod(block_size, steps)
    return max(1, base + (step < more))


def most_confident(confidence: Tensor, masked: Tensor, count: int) -> Tensor:
    """The ``count`` most confident masked positions of each row, as a boolean mask."""
    scores = confidence.masked_fill(~masked, -torch.inf)
    chosen = torch.zeros_like(masked)
    chosen.scatter_(1, scores.topk(min(count, masked.shape[1]), dim=1).indices, True)
    return chosen & masked


def static(block_size: int, steps: int) -> Policy:
    """A fixed number of positions a step, most confident first."""
    return lambda confidence, masked, step: most_confident(confidence, masked, quota(block_size, steps, step))


def dynamic(block_size: int, steps: int, threshold: float) -> Policy:
    """All positions above the threshold; the static quota of the most confident where fewer are (the paper's schedule)."""

    def accept(confidence: Tensor, masked: Tensor, step: int) -> Tensor:
        count = quota(block_size, steps, step)
        above = (confidence > threshold) & masked
        return torch.where(above.sum(1, keepdim=True) >= count, above, most_confident(confidence, masked, count))

    return accept
