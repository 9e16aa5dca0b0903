"""Calling the stock model's body the way a block decoder needs: the prompt once, then blocks against the key-value buffer.

Shape suffixes: B rows, Q queries, K keys, L prompt length, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bard_core.decoding.cache import BlockCache
from bard_core.decoding.prompt import Prompt
from bard_core.diffusion.names import CleanAttention
from bard_core.models.attention import use_our_attention
from bard_core.models.block_attention import everything_visible


class Body:
    """The model's body over one cache; counts its calls. Several bodies may share a model, in several threads too.

    A call's queries are clean tokens, then noisy ones. A noisy query sees all that is there; a clean one sees no noisy key, and
    of the clean tokens beside it all (``clean_attention="block"``) or those up to itself (``"causal"``).

    Attributes:
        forwards: calls that had something else to do than to read the prompt: commits, drafts and verifications included.
    """

    def __init__(self, model: Any, cache: BlockCache, clean_attention: CleanAttention) -> None:
        use_our_attention(model)
        self.model = model
        self.cache = cache
        self.clean_attention: CleanAttention = clean_attention
        self.forwards = 0
        self.device = model.get_input_embeddings().weight.device
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()
        self._everything = everything_visible(self.device)
        self._visible_B11K: Tensor | None = None

    def prefill(self, prompt: Prompt, block_size: int, noisy_Bn: Tensor | None = None) -> Tensor:
        """Write the prompt, and the noisy block behind it if one rides along, into the cache; hidden states [B, L (+ n), D].

        The call counts as a forward where a block rides along.
        """
        riding = 0 if noisy_Bn is None else noisy_Bn.shape[1]
        ids, positions = prompt.input_ids_BL, prompt.position_ids
        if noisy_Bn is not None:
            self.forwards += 1
            following = prompt.next_position_B[:, None] + torch.arange(riding, device=self.device)
            ids = torch.cat([ids, noisy_Bn], 1)
            positions = torch.cat([positions, following.expand(*positions.shape[:-1], riding)], -1)
        out = self.model.base_model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=prompt.mask(block_size, self.clean_attention, riding),
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
        queries = tokens_BQ.shape[1]
        mask = self._mask(queries, clean, lengths_B1)
        out = self._decoder(
            input_ids=tokens_BQ,
            position_ids=positions_BQ,
            attention_mask=self._everything if mask is None else mask,
            past_key_values=self.cache,
            clean_queries=clean if clean < queries else 0,
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
