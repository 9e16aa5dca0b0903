"""The sparse evaluation of the mask rule is the dense one: tile by tile, in the kernel's own terms, and in the kernel."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask, flex_attention

from bard_core.diffusion.layout import FIELDS, PADDING, TokenTable, attention_mask, sample_layout
from bard_core.diffusion.tiles import block_mask, tile_map


def row_of(samples, block_size, copies, padding):
    """Table [1, L] of samples (length, turns) packed into one row, each with its noisy copies."""
    parts = []
    for index, (length, turns) in enumerate(samples):
        layout = sample_layout(length, turns, block_size)
        noisy = layout.source_R.numel()
        parts.append(
            torch.stack(
                [
                    torch.full((length + copies * noisy,), index),
                    torch.cat([torch.arange(length), layout.source_R.repeat(copies)]),
                    torch.cat([layout.clean_block_N, layout.block_R.repeat(copies)]),
                    torch.cat([torch.zeros(length).long(), torch.arange(copies).repeat_interleave(noisy) + 1]),
                ]
            )
        )
    columns = F.pad(torch.cat(parts, 1), (0, padding), value=PADDING)
    return TokenTable(*columns[:, None])


@st.composite
def rows(draw):
    """Packed, multi-turn, complementary and padded rows of up to a few hundred tokens."""
    samples = []
    for _ in range(draw(st.integers(1, 3))):
        cursor, turns = 0, []
        for _ in range(draw(st.integers(0, 3))):
            start = cursor + draw(st.integers(0, 40))
            turns.append((start, start + draw(st.integers(1, 60))))
            cursor = turns[-1][1]
        samples.append((cursor + draw(st.integers(1, 20)), turns))
    return row_of(samples, draw(st.sampled_from([1, 4, 8, 32])), draw(st.integers(1, 2)), draw(st.integers(0, 20)))


def dense_tiles(table, clean_attention, tile):
    """(any, all) of the dense mask in every tile; what lies past the row counts as invisible."""
    filler = -table.role.shape[-1] % tile
    mask = F.pad(attention_mask(table, table, clean_attention), (0, filler, 0, filler))
    tiles = mask.unflatten(1, (-1, tile)).unflatten(3, (-1, tile)).transpose(2, 3).flatten(3)
    return tiles.any(-1), tiles.all(-1)


@settings(max_examples=150, deadline=None)
@given(rows(), st.sampled_from(["block", "causal", "released"]))
def test_no_visible_pair_is_skipped_and_no_hidden_one_taken_for_granted(table, clean_attention):
    some, full = tile_map(table, clean_attention, tile=16)
    seen, everything = dense_tiles(table, clean_attention, tile=16)
    assert not (seen & ~some).any()
    assert not (full & ~everything).any()
    assert not (full & ~some).any()


@pytest.mark.parametrize("clean_attention", ["block", "causal", "released"])
def test_one_long_sample_visits_just_what_it_must(clean_attention):
    table = row_of([(1536, [(1024, 1536)])], 32, 1, 0)
    some, full = tile_map(table, clean_attention)
    seen, everything = dense_tiles(table, clean_attention, 128)
    assert torch.equal(some, seen) and torch.equal(full, everything)
    assert float(some.float().mean()) < 0.55


@pytest.mark.parametrize("clean_attention", ["block", "causal", "released"])
def test_block_mask_holds_the_tiles_and_the_rule(clean_attention):
    table = row_of([(300, [(40, 90), (120, 290)]), (200, [(100, 180)])], 8, 2, 11)
    made, length = block_mask(table, clean_attention), table.role.shape[-1]
    some, _ = tile_map(table, clean_attention)
    assert torch.equal(made.to_dense()[:, 0].bool(), some)
    assert made.shape == (1, 1, length, length)
    rule = create_mask(made.mask_mod, 1, 1, length, length, device="cpu")[:, 0]
    assert torch.equal(rule.bool(), attention_mask(table, table, clean_attention))


def test_tables_of_one_key_share_a_mask():
    plain = row_of([(100, [(20, 80)])], 4, 1, 0)
    named = [TokenTable(*(getattr(plain, name) for name in FIELDS), key=("a", 4)) for _ in range(2)]
    assert block_mask(named[0], "block") is block_mask(named[1], "block")
    assert block_mask(named[0], "block") is not block_mask(named[0], "causal")
    assert block_mask(plain, "block") is not block_mask(plain, "block")


@pytest.mark.slow
@torch.no_grad()
def test_the_compiled_kernel_gives_the_dense_result_from_one_compilation():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(flex_attention, dynamic=False)
    for samples, block_size, copies, padding in (
        ([(300, [(100, 290)])], 8, 1, 20),
        ([(90, [(20, 40), (55, 85)]), (100, [(50, 80)])], 4, 2, 154),
    ):
        table = row_of(samples, block_size, copies, padding)
        assert table.role.shape == (1, 512)
        query, key, value = (torch.randn(1, heads, 512, 16) for heads in (4, 2, 2))
        sparse = compiled(query, key, value, block_mask=block_mask(table, "block"), enable_gqa=True)
        mask = attention_mask(table, table, "block")[:, None]
        dense = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        real = table.role[0] != PADDING
        assert torch.allclose(sparse[:, :, real], dense[:, :, real], atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
