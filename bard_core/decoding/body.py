"""Calling the stock model's body the way a block decoder needs: no implicit causal mask, and no mask where every key is visible.

``transformers`` turns "no mask" into causal attention; the attention function registered here takes it literally, so that the
denoising step, whose block sees the whole cache and itself, runs SDPA without a mask on grouped-query heads. The fused step
([clean block b | noisy block b+1], a 2 x 2 block mask) is two unmasked calls over different key ranges.

Shape suffixes: B rows, Q queries, K keys, L prompt length, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from bard_core.decoding.cache import BlockCache
from bard_core.decoding.prompt import Prompt
from bard_core.diffusion.names import CleanAttention

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

    A call's queries are clean tokens, then noisy ones. A noisy query sees all that is there; a clean one sees no noisy key, and
    of the clean tokens beside it all (``clean_attention="block"``) or those up to itself (``"causal"``).

    Attributes:
        forwards: calls since the prefill, commits, drafts and verifications included.
    """

    def __init__(self, model: Any, cache: BlockCache, clean_attention: CleanAttention) -> None:
        self.model = model
        self.cache = cache
        self.clean_attention: CleanAttention = clean_attention
        self.forwards = 0
        self.device = model.get_input_embeddings().weight.device
        self._decoder = model.get_decoder()
        self._config = self._decoder.config
        self._head = model.get_output_embeddings()
        self._visible_B11K: Tensor | None = None

    def prefill(self, prompt: Prompt, block_size: int) -> Tensor:
        """Write the prompt into the cache; hidden states [B, L, D]. No logits, and not counted as a forward."""
        with literal_masks(self._config):
            out = self.model.base_model(
                input_ids=prompt.input_ids_BL,
                position_ids=prompt.position_ids,
                attention_mask=prompt.mask(block_size, self.clean_attention),
                past_key_values=self.cache,
                **prompt.images,
            )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def look_past(self, pads: list[int]) -> None:
        """Hide each row's padding: what all rows share is cut off, and only unequal rows need a mask."""
        start = min(pads)
        self.cache.hide_before(start)
        self._visible_B11K = None
        if max(pads) > start:
            slots = torch.arange(start, self.cache.capacity, device=self.device)
            self._visible_B11K = (slots >= torch.tensor(pads, device=self.device)[:, None])[:, None, None]

    def keep_rows(self, rows: list[int], pads: list[int]) -> None:
        """Compact the batch to these rows, whose paddings are ``pads``."""
        self.cache.batch_select_indices(torch.tensor(rows, device=self.device))
        self.look_past(pads)

    def __call__(self, tokens_BQ: Tensor, positions_BQ: Tensor, clean: int = 0, lengths: Sequence[int] | None = None) -> Tensor:
        """Append ``clean`` clean and then noisy tokens to the cache; hidden states [B, Q, D].

        A response has no images: the text decoder alone is called. ``lengths``: how many tokens of each row, padding included,
        are to stand; what lies behind is overwritten. None: all that the cache holds.
        """
        self.forwards += 1
        lengths_B1 = self._rewind(tokens_BQ.shape[1], lengths)
        mask = self._mask(tokens_BQ.shape[1], clean, lengths_B1)
        extra = {"clean_queries": clean} if mask is None and clean < tokens_BQ.shape[1] else {}
        with literal_masks(self._config):
            out = self._decoder(
                input_ids=tokens_BQ, position_ids=positions_BQ, attention_mask=mask, past_key_values=self.cache, **extra
            )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def close(self) -> None:
        """The decode is over."""

    def logits(self, hidden_BQD: Tensor) -> Tensor:
        """Float32 logits [B, Q, V] of the given positions only."""
        return self._head(hidden_BQD).float()  # type: ignore[no-any-return]

    def _rewind(self, queries: int, lengths: Sequence[int] | None) -> Tensor | None:
        """Tell the cache where the next tokens go; returns the rows' lengths [B, 1] where they differ."""
        if lengths is None or len(set(lengths)) == 1:
            self.cache.place(self.cache.length if lengths is None else lengths[0], None)
            return None
        lengths_B1 = torch.tensor(lengths, device=self.device)[:, None]
        self.cache.place(max(lengths), lengths_B1 + torch.arange(queries, device=self.device))
        return lengths_B1

    def _mask(self, queries: int, clean: int, lengths_B1: Tensor | None) -> Tensor | None:
        """Boolean [B or 1, 1, Q or 1, K], or None where every key is visible but the noisy ones to the clean queries."""
        held = self.cache.get_seq_length()
        visible = None if self._visible_B11K is None else self._visible_B11K[..., : held + queries]
        if lengths_B1 is None and (clean == 0 or (self.clean_attention == "block" and visible is None)):
            return visible
        start = self.cache.length - held
        ends = self._ends(self.cache.length if lengths_B1 is None else lengths_B1, queries, clean)
        mask = (torch.arange(start, start + held + queries, device=self.device) < ends[..., None]).view(
            -1, 1, queries, held + queries
        )
        return mask if visible is None else mask & visible

    def _ends(self, length: int | Tensor, queries: int, clean: int) -> Tensor:
        """For each query [Q] (or [B, Q]) the first slot it does not see, where ``length`` (or [B, 1]) tokens came before."""
        query = torch.arange(queries, device=self.device)
        last_clean = query + 1 if self.clean_attention == "causal" else torch.full_like(query, clean)
        return length + torch.where(query < clean, last_clean, queries)


@contextmanager
def literal_masks(config: Any) -> Iterator[None]:
    """Switch the text layers to ``block_attention`` for one call, so that the model is left as it was found."""
    before = config._attn_implementation
    config._attn_implementation = ATTENTION_NAME
    try:
        yield
    finally:
        config._attn_implementation = before
