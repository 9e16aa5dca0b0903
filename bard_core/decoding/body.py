"""Calling the stock model's body the way a block decoder needs: no implicit causal mask, and no mask where every key is visible.

``transformers`` turns "no mask" into causal attention; the attention function registered here takes it literally, so that the
denoising step, whose block sees the whole cache and itself, runs SDPA without a mask on grouped-query heads. The fused step
([clean block b | noisy block b+1], a 2 x 2 block mask) is two unmasked calls over different key ranges.

Shape suffixes: B rows, Q queries, K keys, L prompt length, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from bard_core.decoding.cache import BlockCache

ATTENTION_NAME = "bard_block"


def block_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    clean_queries: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """SDPA in which ``attention_mask=None`` means that every key is visible.

    Args:
        query: [B, heads, Q, D]; ``key`` and ``value``: [B, key-value heads, K, D].
        attention_mask: boolean [B or 1, 1, Q or 1, K], True where the query may look.
        clean_queries: with no mask, this many leading queries do not see the keys of the queries after them.

    Returns:
        [B, Q, heads, D] and None, as transformers expects.
    """
    if clean_queries and attention_mask is None:
        seen = key.shape[2] - (query.shape[2] - clean_queries)
        clean = _sdpa(query[:, :, :clean_queries], key[:, :, :seen], value[:, :, :seen], None, scaling)
        noisy = _sdpa(query[:, :, clean_queries:], key, value, None, scaling)
        output = torch.cat([clean, noisy], dim=2)
    else:
        output = _sdpa(query, key, value, attention_mask, scaling)
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


AttentionInterface.register(ATTENTION_NAME, block_attention)


class Body:
    """The model's body over one cache; counts its calls.

    Attributes:
        forwards: calls since the prefill, commits, drafts and verifications included.
    """

    def __init__(self, model: Any, cache: BlockCache) -> None:
        self.model = model
        self.cache = cache
        self.forwards = 0
        self._decoder = model.get_decoder()
        self._config = self._decoder.config
        self._head = model.get_output_embeddings()

    def prefill(self, input_ids_BL: Tensor, position_ids: Tensor, mask_B1LL: Tensor, images: dict[str, Any]) -> Tensor:
        """Write the prompt into the cache; hidden states [B, L, D]. No logits, and not counted as a forward."""
        with self._literal_masks():
            out = self.model.base_model(
                input_ids=input_ids_BL, position_ids=position_ids, attention_mask=mask_B1LL, past_key_values=self.cache, **images
            )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def __call__(
        self, tokens_BQ: Tensor, positions_BQ: Tensor, mask_B1QK: Tensor | None = None, clean_queries: int = 0
    ) -> Tensor:
        """Append tokens to the cache; hidden states [B, Q, D]. A response has no images: the text decoder alone is called."""
        self.forwards += 1
        extra = {"clean_queries": clean_queries} if clean_queries else {}
        with self._literal_masks():
            out = self._decoder(
                input_ids=tokens_BQ, position_ids=positions_BQ, attention_mask=mask_B1QK, past_key_values=self.cache, **extra
            )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden_BQD: Tensor) -> Tensor:
        """Float32 logits [B, Q, V] of the given positions only."""
        return self._head(hidden_BQD).float()  # type: ignore[no-any-return]

    @contextmanager
    def _literal_masks(self) -> Iterator[None]:
        """Switch the text layers to ``block_attention`` for one call, so that the model is left as it was found."""
        before = self._config._attn_implementation
        self._config._attn_implementation = ATTENTION_NAME
        try:
            yield
        finally:
            self._config._attn_implementation = before
