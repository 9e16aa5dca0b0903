"""Which proposed tokens of a block are accepted at a step: small pure functions, none of which waits for the device.

Every policy takes scores [B, n] and ``masked`` [B, n], which is True where a position is still open. It returns the accepted
positions [B, n]: a subset of ``masked``, with at least one position in every row that is still open.

* static, dynamic: the paper's ``low_confidence_static`` and ``low_confidence_dynamic`` (golden: decode.json)
* entropy: Ben-Hamu et al. 2025, entropy-bounded unmasking
* factor: Wu et al. 2025 (Fast-dLLM), factor-based parallel decoding
* revise: token revision, described in the paper and absent from its release
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """For every position of the block, each [B, n]: a token, its probability, and the entropy (nats) of its distribution.

    ``broken`` [B] marks rows with logits that are not finite. ``current`` is the probability of the token the position holds now.
    Entropy and current are None unless asked for.
    """

    tokens: Tensor
    confidence: Tensor
    broken: Tensor
    entropy: Tensor | None = None
    current: Tensor | None = None


Policy = Callable[[Proposal, Tensor, int], Tensor]


def quotas(block_size: int, steps: int) -> tuple[int, ...]:
    """Tokens of each step when a block takes ``steps`` equal steps; the first steps take the remainder."""
    share, rest = divmod(block_size, steps)
    return tuple(share + (step < rest) for step in range(steps))


def accept_static(confidence: Tensor, masked: Tensor, quota: int) -> Tensor:
    """The ``quota`` most confident open positions."""
    chosen = confidence.masked_fill(~masked, -torch.inf).topk(min(quota, confidence.shape[1]), dim=1).indices
    return torch.zeros_like(masked).scatter_(1, chosen, True) & masked


def accept_dynamic(confidence: Tensor, masked: Tensor, threshold: float, quota: int = 1) -> Tensor:
    """Every open position above ``threshold``; where those are fewer than ``quota``, the ``quota`` most confident.

    Of the two sets one holds the other, so their union is the rule.
    """
    return (masked & (confidence > threshold)) | accept_static(confidence, masked, quota)


def accept_entropy(entropy: Tensor, masked: Tensor, bound: float) -> Tensor:
    """The largest set of lowest-entropy positions whose entropies, less the largest one, sum to at most ``bound`` nats.

    That sum bounds what sampling them independently instead of one after another can cost.
    """
    finite = entropy.nan_to_num(nan=torch.finfo(entropy.dtype).max)  # of broken logits, or no position would be accepted ever
    ordered, index = finite.masked_fill(~masked, torch.inf).sort(dim=1)
    cost = ordered.cumsum(1) - ordered
    return torch.zeros_like(masked).scatter(1, index, cost <= bound) & masked


def accept_factor(confidence: Tensor, masked: Tensor, factor: float) -> Tensor:
    """The n most confident positions for the largest n with (n + 1)(1 - confidence of the n-th) < ``factor``; at least one."""
    ordered, index = confidence.masked_fill(~masked, -torch.inf).sort(dim=1, descending=True, stable=True)
    count = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
    holds = (count + 1) * (1 - ordered) < factor
    within = holds.flip(1).cummax(1).values.flip(1)
    within[:, 0] = True
    return torch.zeros_like(masked).scatter(1, index, within) & masked


def revise(current: Tensor, masked: Tensor, revisable: Tensor, threshold: float) -> Tensor:
    """Filled positions to open again: those whose token's probability has fallen below ``threshold``.

    ``revisable`` marks positions that were not reopened before: with at most one revision a position, and at least one
    position filled a step, a block of n ends within 2n steps.
    """
    return ~masked & revisable & (current < threshold)


def make_policy(
    strategy: str, block_size: int, denoising_steps: int, confidence_threshold: float, entropy_bound: float, factor: float
) -> Policy:
    """The named policy with its settings bound. Steps past the plan (after revisions) keep the last step's quota.

    Raises:
        ValueError: unknown name.
    """
    plan = quotas(block_size, denoising_steps)

    def quota(step: int) -> int:
        return plan[min(step, denoising_steps - 1)]

    def by_entropy(proposal: Proposal, masked: Tensor, step: int) -> Tensor:
        assert proposal.entropy is not None
        return accept_entropy(proposal.entropy, masked, entropy_bound)

    policies: dict[str, Policy] = {
        "static": lambda p, masked, step: accept_static(p.confidence, masked, quota(step)),
        "dynamic": lambda p, masked, step: accept_dynamic(p.confidence, masked, confidence_threshold, quota(step)),
        "entropy": by_entropy,
        "factor": lambda p, masked, step: accept_factor(p.confidence, masked, factor),
    }
    if strategy not in policies:
        raise ValueError(f"unknown strategy {strategy!r}: use one of {', '.join(policies)}")
    return policies[strategy]
