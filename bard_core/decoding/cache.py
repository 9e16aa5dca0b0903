"""A key-value cache that is allocated once and written in place (the released decoder concatenates anew in every layer and step).

Stock ``transformers`` layers call ``update`` and get narrowed views of the buffer, so nothing is copied. Undoing the last
tokens, which a block decoder does after every denoising step, moves one integer a layer.

Shape suffixes: B rows, H key-value heads, C capacity, Q new tokens, D head size.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class BlockCacheLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, each [B, H, C, D]; tokens ``start <= i < length`` are visible.

    ``slots_BQ`` says where the next tokens go in each row; None: behind the last, in every row alike.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.start = 0
        self.length = 0
        self.slots_BQ: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads = key_states.shape[:2]  # zeros: a compiled forward reads the whole buffer, and a masked NaN is a NaN still
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(rows, heads, self.capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(rows, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, H, Q, D]; returns views [B, H, visible, D] that include them.

        Raises:
            ValueError: the buffer is full.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        before = self.length
        self.advance(key_states.shape[-2])
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            if self.slots_BQ is None:
                buffer[:, :, before : self.length].copy_(states)
            else:
                buffer.scatter_(2, self.slots_BQ[:, None, :, None].expand_as(states), states)
        return self.keys[:, :, self.start : self.length], self.values[:, :, self.start : self.length]

    def advance(self, tokens: int) -> None:
        """Count tokens that are written.

        Raises:
            ValueError: the buffer is full.
        """
        if self.length + tokens > self.capacity:
            raise ValueError(
                f"key-value buffer holds {self.capacity} tokens, {self.length + tokens} needed: give BlockCache a larger capacity"
            )
        self.length += tokens

    def reset(self) -> None:
        """Forget everything, and keep the memory."""
        super().reset()  # type: ignore[no-untyped-call]
        self.start = self.length = 0
        self.slots_BQ = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens (negative, as transformers 5 has it)."""
        if not -self.length <= tokens_to_remove <= 0:
            raise ValueError(f"crop takes a negative number of tokens, at most the {self.length} held, got {tokens_to_remove}")
        self.length += tokens_to_remove

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            self.keys = self.keys.index_select(0, indices)
            self.values = self.values.index_select(0, indices)

    def join(self, other: "BlockCacheLayer", capacity: int) -> None:
        """Take the rows of another layer's buffer behind one's own, so that all end at the same slot of a new buffer."""
        length = max(self.length, other.length)
        assert self.keys is not None and self.values is not None and other.keys is not None and other.values is not None
        for name, mine, theirs in (("keys", self.keys, other.keys), ("values", self.values, other.values)):
            rows = mine.shape[0]
            joined = mine.new_zeros(rows + theirs.shape[0], mine.shape[1], capacity, mine.shape[3])
            joined[:rows, :, length - self.length : length] = mine[:, :, : self.length]
            joined[rows:, :, length - other.length : length] = theirs[:, :, : other.length]
            setattr(self, name, joined)
        self.capacity, self.length, self.start, self.slots_BQ = capacity, length, 0, None

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.length - self.start

    def get_max_length(self) -> int:
        return self.capacity

    def get_max_cache_shape(self) -> int:
        """The same under the name transformers 5.17 uses."""
        return self.capacity


class BlockCache(Cache):
    """One ``BlockCacheLayer`` a decoder layer.

    Args:
        layers: number of decoder layers.
        capacity: tokens a row can hold, padding and the block being denoised included.
    """

    layers: list[BlockCacheLayer]  # type: ignore[assignment]

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers=[BlockCacheLayer(capacity) for _ in range(layers)])

    @property
    def capacity(self) -> int:
        """Tokens a row can hold."""
        return self.layers[0].capacity

    @property
    def rows(self) -> int:
        """Rows of the buffer; 0 before anything is written."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[0]

    @property
    def length(self) -> int:
        """Tokens written in every row, padding included."""
        return self.layers[0].length

    def advance(self, tokens: int) -> None:
        """Count tokens that are written into every layer by other hands."""
        for layer in self.layers:
            layer.advance(tokens)

    def place(self, length: int, slots_BQ: Tensor | None) -> None:
        """Go on from ``length`` tokens, the next ones into these slots of each row (None: behind the last)."""
        for layer in self.layers:
            layer.length, layer.slots_BQ = length, slots_BQ

    def join(self, other: "BlockCache", capacity: int) -> None:
        """Take another cache's rows behind one's own; what is shorter is moved to the right, behind more padding."""
        for layer, more in zip(self.layers, other.layers, strict=True):
            layer.join(more, capacity)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens of every row."""
        for layer in self.layers:
            layer.crop(tokens_to_remove)

    def hide_before(self, start: int) -> None:
        """No query sees tokens before ``start`` any more: padding that all rows share."""
        for layer in self.layers:
            layer.start = start


def new_cache(model: Any, capacity: int) -> BlockCache:
    """A cache for a Hugging Face model.

    Raises:
        ValueError: the model has layers that are not full attention, whose state cannot be rolled back.
    """
    config = model.config.get_text_config(decoder=True)
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if other:
        raise ValueError(
            f"{type(model).__name__} has {', '.join(other)} layers: block decoding needs full attention in every layer"
        )
    return BlockCache(config.num_hidden_layers, capacity)
