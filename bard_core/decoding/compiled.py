"""The body with static shapes, compiled: one CUDA graph a forward on a GPU, fused kernels on a CPU.

A small batch spends most of an eager forward on launching kernels. Here two calls of one width differ in the values of tensors
alone. New keys go to slots that a tensor names. Attention sees the whole buffer under a mask of intervals: each query sees the
slots from its row's start up to an end. A row that finished stays where it is. A new width, number of rows or capacity is
compiled once, which takes up to a minute. So the capacity is rounded up (prompts to powers of two), and the last decode's buffers
are kept.

Shape suffixes: R rows of the buffer, B rows still active, Q queries, C capacity.
"""

import functools
from collections.abc import Sequence
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from bard_core.decoding.body import Body
from bard_core.decoding.cache import BlockCache, new_cache
from bard_core.diffusion.names import CleanAttention

SMALLEST_PROMPT = 128
STEP = 64  # by which the room for the response grows; GPU kernels want masks of such widths
SHAPES = 64  # compiled in one process, for all models, before torch gives up and runs further ones eagerly


def new_body(model: Any, rows: int, prompt: int, response: int, clean_attention: CleanAttention, compiled: bool) -> Body:
    """A body with an empty cache for rows of at most ``prompt`` and then ``response`` tokens; close it after use."""
    if compiled:
        return CompiledBody(model, rows, prompt, response, clean_attention)
    return Body(model, new_cache(model, prompt + response), clean_attention)


class CompiledBody(Body):
    """As ``Body``, to be closed after use.

    Args:
        rows: of the batch.
        prompt: tokens of the longest prompt, padding included.
        response: further tokens that a row can hold.
    """

    def __init__(self, model: Any, rows: int, prompt: int, response: int, clean_attention: CleanAttention) -> None:
        capacity = max(SMALLEST_PROMPT, 1 << (prompt - 1).bit_length()) + -(-response // STEP) * STEP
        super().__init__(model, _borrow(model, rows, capacity), clean_attention)
        self._rows = rows
        self._active_B: Tensor | None = None
        self._starts_R = torch.zeros(rows, dtype=torch.long, device=self.device)

    def look_past(self, pads: list[int]) -> None:
        starts = torch.tensor(pads, device=self.device)
        if self._active_B is None:
            self._starts_R = starts
        else:
            self._starts_R[self._active_B] = starts

    def keep_rows(self, rows: list[int], pads: list[int]) -> None:
        kept = torch.tensor(rows, device=self.device)
        self._active_B = kept if self._active_B is None else self._active_B[kept]

    def __call__(self, tokens_BQ: Tensor, positions_BQ: Tensor, clean: int = 0, lengths: Sequence[int] | None = None) -> Tensor:
        if not self.cache.layers[-1].is_initialized:  # no prompt, or none that got through: this call allocates the buffers
            return super().__call__(tokens_BQ, positions_BQ, clean, lengths)
        self.forwards += 1
        queries = tokens_BQ.shape[1]
        lengths_R1 = self._spread(self._lengths(tokens_BQ.shape[0], lengths))
        self.cache.advance(queries)
        slots_RQ = lengths_R1 + torch.arange(queries, device=self.device)
        tokens_RQ, positions_RQ = self._spread(tokens_BQ), self._spread(positions_BQ)
        ends_RQ = self._ends(lengths_R1, queries, clean)
        torch.compiler.cudagraph_mark_step_begin()
        with torch._dynamo.config.patch(recompile_limit=SHAPES):  # type: ignore[attr-defined]
            hidden_RQD = _compiled()(self._decoder, self._buffers(), tokens_RQ, positions_RQ, slots_RQ, self._starts_R, ends_RQ)
        return hidden_RQD if self._active_B is None else hidden_RQD[self._active_B]  # type: ignore[no-any-return]

    @torch.inference_mode()  # whoever collects a stream that was given up is outside of it
    def close(self) -> None:
        self.cache.reset()
        _idle[self.model] = self.cache

    def _lengths(self, rows: int, lengths: Sequence[int] | None) -> Tensor:
        """[B, 1] tokens that stand in each row; the cache goes on from the longest."""
        if lengths is None:
            return torch.full((rows, 1), self.cache.length, device=self.device)
        self.cache.place(max(lengths), None)
        return torch.tensor(lengths, device=self.device)[:, None]

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer [R, heads, C, D], marked so that a graph reads and writes them where they are."""
        buffers = [(layer.keys, layer.values) for layer in self.cache.layers]
        for buffer in chain.from_iterable(buffers):
            torch._dynamo.mark_static_address(buffer)
        return buffers  # type: ignore[return-value]

    def _spread(self, values_BQ: Tensor) -> Tensor:
        """[R, Q]: the active rows in their places, zeros in the others, whose results nobody reads."""
        if self._active_B is None:
            return values_BQ
        return values_BQ.new_zeros(self._rows, values_BQ.shape[1]).index_copy_(0, self._active_B, values_BQ)


class _WholeLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's buffer as the compiled forward sees it: written at given slots, handed out whole."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, slots_RQ: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.slots_RQ = keys, values, slots_RQ
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("the buffer is there")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        rows_R1 = torch.arange(len(self.slots_RQ), device=self.slots_RQ.device)[:, None]
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):  # not scatter_: that copies the buffer
            buffer[rows_R1, :, self.slots_RQ] = states.transpose(1, 2)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        assert self.keys is not None
        return self.keys.shape[2]

    def get_max_cache_shape(self) -> int:
        """The same under the name transformers 5.17 uses."""
        return self.get_max_length()


@functools.cache
def _compiled() -> Any:
    """``_forward``, compiled. To import the compiler takes longer than a short answer, so only those pay who ask for it."""
    return torch.compile(_forward, mode="reduce-overhead", dynamic=False)


def _forward(
    decoder: Any,
    buffers: list[tuple[Tensor, Tensor]],
    tokens_RQ: Tensor,
    positions_RQ: Tensor,
    slots_RQ: Tensor,
    starts_R: Tensor,
    ends_RQ: Tensor,
) -> Any:
    """Hidden states [R, Q, D]; query q of row r sees the slots from ``starts_R[r]`` up to, not including, ``ends_RQ[r, q]``."""
    slots_C = torch.arange(buffers[0][0].shape[2], device=tokens_RQ.device)
    mask_RQC = (slots_C >= starts_R[:, None, None]) & (slots_C < ends_RQ[..., None])
    cache = Cache(layers=[_WholeLayer(keys, values, slots_RQ) for keys, values in buffers])
    out = decoder(
        input_ids=tokens_RQ,
        position_ids=positions_RQ,
        attention_mask=mask_RQC[:, None],
        past_key_values=cache,
        clean_queries=0,
    )
    return out.last_hidden_state


# The buffers of a model's last compiled decode. Whoever decodes takes them out, so that two streams never share any.
_idle: WeakKeyDictionary[Any, BlockCache] = WeakKeyDictionary()


def _borrow(model: Any, rows: int, capacity: int) -> BlockCache:
    """Buffers at an address that recorded graphs know already, if the last decode had this shape; else new ones."""
    cache = _idle.pop(model, None)
    if cache is not None and (cache.rows, cache.capacity) == (rows, capacity):
        layer, weight = cache.layers[0], model.get_input_embeddings().weight
        if (layer.dtype, layer.device) == (weight.dtype, weight.device):  # the model may have been moved or converted since
            return cache
    return new_cache(model, capacity)
