"""A KV cache written in place: room for the whole answer is taken once, a denoising step writes past the committed length and
is overwritten by the next, and committing moves one number. Nothing is ever concatenated."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class BlockLayer(CacheLayerMixin):
    """Keys and values [B, H, capacity, D] of one layer; ``committed`` positions are final."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.committed = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, size = key_states.shape
        self.keys = key_states.new_empty(batch, heads, self.capacity, size)
        self.values = value_states.new_empty(batch, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write after the committed positions; returns views of everything up to there."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.committed + key_states.shape[-2]
        self.keys[:, :, self.committed : end] = key_states
        self.values[:, :, self.committed : end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.committed + query_length, 0

    def get_seq_length(self) -> int:
        return self.committed

    def get_max_length(self) -> int:
        return self.capacity


class BlockCache(Cache):
    """One :class:`BlockLayer` a decoder layer."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[BlockLayer(capacity) for _ in range(num_layers)])

    def commit(self, length: int) -> None:
        """Make the first ``length`` of the positions written last final."""
        for layer in self.layers:
            layer.committed += length

    def keep_rows(self, rows: Tensor) -> None:
        """Drop the rows of finished answers."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
