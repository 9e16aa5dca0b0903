"""One layout and one mask rule for block-diffusion training and decoding (paper section 3).

A row is ``[clean conversation | noisy copies of every assistant turn]``; the prefix and its images are never doubled. Every
token has (sample, position, block, role). For a query q and a key k of the same sample:

    clean q -> clean k   k.block <= q.block ("block", the paper)   or   k.position <= q.position ("causal")
    noisy q -> clean k   k.block <  q.block
    noisy q -> noisy k   k.block == q.block
    clean q -> noisy k   never

A sample may carry several noisy copies (complementary masks): role 1, 2, ...; a copy sees itself only.

Shape suffixes: B rows, L row length, N clean tokens of a sample, R noisy tokens of a sample.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bard_core.diffusion.names import TrainedAttention

CLEAN, NOISY, PADDING = 0, 1, -1
FIELDS = ("sample", "position", "block", "role")


@dataclass(frozen=True)
class TokenTable:
    """What the mask rule needs to know of every token; four integer tensors of one shape [..., L].

    ``key`` names what the table was laid out from (lengths, turns, block size); tables of one key are equal, so a mask made
    from one serves them all. None: unnamed.
    """

    sample: Tensor
    position: Tensor
    block: Tensor
    role: Tensor
    key: Hashable = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "TokenTable":
        return replace(self, **{name: change(getattr(self, name)) for name in FIELDS})

    def __getitem__(self, index: Any) -> "TokenTable":
        """The same index into all four tensors."""
        return TokenTable(*(getattr(self, name)[index] for name in FIELDS))


@dataclass(frozen=True)
class SampleLayout:
    """Where the tokens of one sample go.

    ``clean_block_N``: block of every clean token. ``source_R``: the clean index that a noisy token copies; past the end of
    a turn it runs on, so that the last block is as long as it is when decoding (``tail_R`` marks those tokens, whose target
    is the end token). ``block_R``: block of every noisy token. ``turn_R``: index of its assistant turn.
    """

    clean_block_N: Tensor
    source_R: Tensor
    block_R: Tensor
    turn_R: Tensor
    tail_R: Tensor


def sample_layout(length: int, turns: Sequence[tuple[int, int]], block_size: int, context: int = 0) -> SampleLayout:
    """Lay out one conversation of ``length`` clean tokens whose assistant turns are the spans ``[start, end)``.

    Blocks count from position 0, and start afresh where a turn starts and where it ends, so blocks before a turn may be short.
    The first ``context`` turns have no noisy copy.

    Raises:
        ValueError: a turn is empty, out of range, or overlaps the one before; or ``block_size`` < 1.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    clean_block = torch.empty(length, dtype=torch.long)
    source, block, turn, tail = [], [], [], []
    cursor, next_block = 0, 0
    for index, (start, end) in enumerate(turns):
        if not cursor <= start < end <= length:
            raise ValueError(f"turn {index} is [{start}, {end}) in a conversation of {length} tokens, after position {cursor}")
        next_block = _fill_blocks(clean_block, cursor, start, next_block, block_size)
        padded = 0 if index < context else -(-(end - start) // block_size) * block_size
        offsets = torch.arange(padded)
        source.append(start + offsets)
        block.append(next_block + offsets // block_size)
        turn.append(torch.full((padded,), index))
        tail.append(start + offsets >= end)
        next_block = _fill_blocks(clean_block, start, end, next_block, block_size)
        cursor = end
    _fill_blocks(clean_block, cursor, length, next_block, block_size)
    empty = torch.empty(0, dtype=torch.long)
    return SampleLayout(
        clean_block_N=clean_block,
        source_R=torch.cat([empty, *source]),
        block_R=torch.cat([empty, *block]),
        turn_R=torch.cat([empty, *turn]),
        tail_R=torch.cat([empty.bool(), *tail]),
    )


def _fill_blocks(block_N: Tensor, start: int, end: int, first_block: int, block_size: int) -> int:
    """Number the blocks of ``block_N[start:end]`` from ``first_block``; returns the next free number."""
    if end > start:
        block_N[start:end] = first_block + torch.arange(end - start) // block_size
    return first_block + -(-(end - start) // block_size)


def clean_to_all(query: TokenTable, key: TokenTable, clean_attention: TrainedAttention) -> Tensor:
    """Sub-rule: the clean stream on itself; as released, on the noisy copies of its own and earlier blocks too."""
    if clean_attention == "causal":
        order = key.position <= query.position
    else:
        order = key.block <= query.block
    seen = key.role >= CLEAN if clean_attention == "released" else key.role == CLEAN
    return order & (query.role == CLEAN) & seen


def noisy_to_clean(query: TokenTable, key: TokenTable) -> Tensor:
    """Sub-rule: a noisy block sees the clean blocks before it."""
    return (key.block < query.block) & (query.role >= NOISY) & (key.role == CLEAN)


def noisy_to_noisy(query: TokenTable, key: TokenTable) -> Tensor:
    """Sub-rule: a noisy block sees itself, both ways, and no other copy of itself."""
    return (key.block == query.block) & (key.role == query.role) & (query.role >= NOISY)


def visible(query: TokenTable, key: TokenTable, clean_attention: TrainedAttention) -> Tensor:
    """The whole rule, for tables that broadcast against each other: True where the query may look at the key.

    The dense mask calls it on all pairs at once, the sparse one inside the attention kernel on one pair at a time.
    """
    seen = clean_to_all(query, key, clean_attention) | noisy_to_clean(query, key) | noisy_to_noisy(query, key)
    return seen & (key.sample == query.sample)


def attention_mask(query: TokenTable, key: TokenTable, clean_attention: TrainedAttention = "block") -> Tensor:
    """The rule evaluated densely: boolean [..., Lq, Lk]."""
    return visible(query[..., :, None], key[..., None, :], clean_attention)
