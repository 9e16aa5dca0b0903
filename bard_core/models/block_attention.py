"""Attention of a block decoder's queries: no implicit causal mask, and no mask at all where every key is visible.

The denoising step, whose block sees the whole cache and itself, then runs SDPA on grouped-query heads without a mask. The fused
step ([clean block b | noisy block b+1], a 2 x 2 block mask) is two unmasked calls over different key ranges.

Shape suffixes: B rows, Q queries, K keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def everything_visible(device: torch.device) -> Tensor:
    """The mask of one element [1, 1, 1, 1] that says so. transformers takes "no mask" for a causal one."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float | None, clean_queries: int
) -> tuple[Tensor, None]:
    """SDPA under a boolean mask, or under ``everything_visible``.

    Args:
        query: [B, heads, Q, D]; ``key`` and ``value``: [B, key-value heads, K, D].
        attention_mask: [B or 1, 1, Q or 1, K], True where the query may look.
        clean_queries: where everything is visible, this many leading queries do not see the keys of the queries after them.

    Returns:
        [B, Q, heads, D] and None, as transformers expects.
    """
    mask = None if attention_mask.numel() == 1 else attention_mask
    if clean_queries and mask is None:
        seen = key.shape[2] - (query.shape[2] - clean_queries)
        clean = _sdpa(query[:, :, :clean_queries], key[:, :, :seen], value[:, :, :seen], None, scaling)
        noisy = _sdpa(query[:, :, clean_queries:], key, value, None, scaling)
        output = torch.cat([clean, noisy], dim=2)
    else:
        output = _sdpa(query, key, value, mask, scaling)
    return output.transpose(1, 2).contiguous(), None


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Grouped-query attention without repeating keys; on CUDA the grouped kernels take no mask, so a masked call is repacked."""
    groups = query.shape[1] // key.shape[1]
    if mask is not None and groups > 1 and query.is_cuda:
        return masked_groups(query, key, value, mask, scaling)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=groups > 1)


def masked_groups(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Masked grouped attention as an ungrouped call: few queries are packed, a prompt has its keys repeated."""
    rows, heads, queries, size = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    if queries == keys:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    packed = query.reshape(rows, kv_heads, groups * queries, size)
    tiled = mask.expand(-1, -1, queries, -1).repeat(1, 1, groups, 1)
    return F.scaled_dot_product_attention(packed, key, value, attn_mask=tiled, scale=scaling).view(rows, heads, queries, -1)
