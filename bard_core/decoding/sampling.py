"""From logits to proposed tokens, on the device: greedy or temperature / top-k / top-p, the mask token always barred."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from bard_core.decoding.policies import Proposal


def propose(
    logits: Tensor,
    mask_token_id: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generators: Sequence[Generator] = (),
    held: Tensor | None = None,
    with_entropy: bool = False,
) -> Proposal:
    """Propose a token for every position, with its probability.

    Greedy confidence is the softmax over the whole vocabulary, as in the paper's released code; only the choice leaves the
    mask token out. Sampled confidence is the probability under the distribution sampled from.

    Args:
        logits: float32 [B, n, V]; overwritten.
        generators: one a row, to sample with.
        held: [B, n] tokens the positions hold now, to get ``Proposal.current``.
    """
    total = logits.logsumexp(-1)
    broken = ~total.isfinite().all(-1)
    current = None if held is None else (logits.gather(-1, held[..., None])[..., 0] - total).exp()
    entropy = None
    if with_entropy:
        entropy = torch.special.entr(logits.softmax(-1)).sum(-1)  # 0 where a logit is -inf
    logits[..., mask_token_id] = -torch.inf
    if temperature == 0.0:
        top, tokens = logits.max(-1)
        return Proposal(tokens, (top - total).exp(), broken, entropy, current)
    probability = _filtered((logits / temperature).softmax(-1), top_k, top_p)
    noise = torch.stack([torch.empty_like(probability[0]).exponential_(generator=generator) for generator in generators])
    tokens = (probability / noise).argmax(-1)
    return Proposal(tokens, probability.gather(-1, tokens[..., None])[..., 0], broken, entropy, current)


def _filtered(probability: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Keep the ``top_k`` likeliest tokens, then the fewest that hold ``top_p`` of the mass; renormalised."""
    if top_k is None and top_p is None:
        return probability
    ordered, index = probability.sort(dim=-1, descending=True)
    if top_k is not None:
        ordered[..., top_k:] = 0.0
    if top_p is not None:
        ordered = ordered / ordered.sum(-1, keepdim=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    kept = torch.zeros_like(probability).scatter(-1, index, ordered)
    return kept / kept.sum(-1, keepdim=True)
