"""The mask rule evaluated sparsely: which tiles of the attention matrix a ``flex_attention`` kernel visits at all.

A tile is 128 queries x 128 keys. The least and greatest sample, block and position of its queries and of its keys say whether
any pair in it is visible, and whether all are. So L / 128 numbers a row decide (L / 128)^2 tiles, and no [L, L] mask ever exists.
Inside a tile that is neither empty nor full the kernel asks the rule itself. Nothing here waits for the device.

Shape suffixes: B rows, L row length, T tiles a row.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from bard_core.diffusion.layout import CLEAN, FIELDS, NOISY, TokenTable, visible
from bard_core.diffusion.names import TrainedAttention

TILE = 128
CACHED_MASKS = 64


@dataclass(frozen=True)
class Span:
    """Of the tokens of one role in every tile: whether there are any, whether there is nothing else, least and greatest
    (sample, block) as one number, (sample, position) as one number, sample, and copy; all [B, T]."""

    some_BT: Tensor
    only_BT: Tensor
    block_BT: tuple[Tensor, Tensor]
    position_BT: tuple[Tensor, Tensor]
    sample_BT: tuple[Tensor, Tensor]
    copy_BT: tuple[Tensor, Tensor]


def tile_map(table_BL: TokenTable, clean_attention: TrainedAttention, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """Two booleans [B, T, T], T = ceil(L / tile), rows are query tiles: tiles to look into, and those of them that are full.

    Every tile with a visible pair is among the first; a full tile has nothing but visible pairs.
    """
    clean, noisy = _span(table_BL, table_BL.role == CLEAN, tile), _span(table_BL, table_BL.role >= NOISY, tile)
    order = (clean.position_BT, clean.position_BT) if clean_attention == "causal" else (clean.block_BT, clean.block_BT)
    some, full = _before(clean, clean, *order, strict=False)
    others = [_before(noisy, clean, noisy.block_BT, clean.block_BT, strict=True), _same_block(noisy)]
    if clean_attention == "released":
        others.append(_before(clean, noisy, clean.block_BT, noisy.block_BT, strict=False))
    for more in others:
        some, full = some | more[0], full | more[1]
    return some, full


def block_mask(table_BL: TokenTable, clean_attention: TrainedAttention) -> BlockMask:
    """The rule as ``flex_attention`` takes it, on the table's device; kept for the next batch with a table of the same key."""
    name = (table_BL.key, clean_attention, table_BL.role.device)
    if table_BL.key is None:
        return _block_mask(table_BL, clean_attention)
    if name in _cache:
        _cache.move_to_end(name)
        return _cache[name]
    _cache[name] = _block_mask(table_BL, clean_attention)
    if len(_cache) > CACHED_MASKS:
        _cache.popitem(last=False)
    return _cache[name]


_cache: OrderedDict[Hashable, BlockMask] = OrderedDict()


def _block_mask(table_BL: TokenTable, clean_attention: TrainedAttention) -> BlockMask:
    some, full = tile_map(table_BL, clean_attention)
    length = table_BL.role.shape[-1]
    small_BL = TokenTable(*(getattr(table_BL, name).int() for name in FIELDS))  # the kernel reads these for every pair

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible(small_BL[row, query], small_BL[row, key], clean_attention)

    return BlockMask.from_kv_blocks(
        *_ordered(some & ~full), *_ordered(full), BLOCK_SIZE=TILE, mask_mod=rule, seq_lengths=(length, length)
    )


def _ordered(chosen_BTT: Tensor) -> tuple[Tensor, Tensor]:
    """For every query tile, how many key tiles are chosen [B, 1, T], and their indices first [B, 1, T, T]."""
    counts = chosen_BTT.sum(-1, dtype=torch.int32)
    indices = chosen_BTT.int().argsort(dim=-1, descending=True, stable=True).int()
    return counts[:, None], indices[:, None]


def _span(table_BL: TokenTable, mine_BL: Tensor, tile: int) -> Span:
    """Bounds over the tokens ``mine_BL`` of every tile."""
    scale = int(table_BL.role.shape[-1]) * 2 + 1  # more than any block or position of a row
    filler = -table_BL.role.shape[-1] % tile

    def tiles(values_BL: Tensor, fill: int) -> Tensor:
        return F.pad(values_BL, (0, filler), value=fill).unflatten(-1, (-1, tile))

    mine_BTt = tiles(mine_BL.int(), 0).bool()

    def bounds(values_BL: Tensor) -> tuple[Tensor, Tensor]:
        values = tiles(values_BL, 0)
        limit = torch.iinfo(values.dtype).max // 2
        return values.masked_fill(~mine_BTt, limit).amin(-1), values.masked_fill(~mine_BTt, -limit).amax(-1)

    return Span(
        some_BT=mine_BTt.any(-1),
        only_BT=mine_BTt.all(-1),
        block_BT=bounds(table_BL.sample * scale + table_BL.block),
        position_BT=bounds(table_BL.sample * scale + table_BL.position),
        sample_BT=bounds(table_BL.sample),
        copy_BT=bounds(table_BL.role),
    )


def _before(
    query: Span, key: Span, query_at: tuple[Tensor, Tensor], key_at: tuple[Tensor, Tensor], strict: bool
) -> tuple[Tensor, Tensor]:
    """(some, full) [B, T, T] of "same sample, and the key's place is before the query's, or also at it if not ``strict``"."""
    lead = 1 if strict else 0
    (q_low, q_high), (k_low, k_high) = query_at, key_at
    (q_first, q_last), (k_first, k_last) = query.sample_BT, key.sample_BT
    some = query.some_BT[:, :, None] & key.some_BT[:, None]
    some = some & (k_last[:, None] >= q_first[:, :, None]) & (k_low[:, None] + lead <= q_high[:, :, None])
    one_sample = (q_first == q_last)[:, :, None] & (k_first == k_last)[:, None] & (q_first[:, :, None] == k_first[:, None])
    only = query.only_BT[:, :, None] & key.only_BT[:, None]
    return some, only & one_sample & (k_high[:, None] + lead <= q_low[:, :, None])


def _same_block(noisy: Span) -> tuple[Tensor, Tensor]:
    """(some, full) [B, T, T] of "same sample, block and copy"."""
    some = noisy.some_BT[:, :, None] & noisy.some_BT[:, None]
    full = noisy.only_BT[:, :, None] & noisy.only_BT[:, None]
    for low, high in (noisy.block_BT, noisy.copy_BT):
        some = some & (low[:, None] <= high[:, :, None]) & (low[:, :, None] <= high[:, None])
        single = low == high
        full = full & single[:, :, None] & single[:, None] & (low[:, :, None] == low[:, None])
    return some, full
