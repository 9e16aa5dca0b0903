"""The mask rule against its definition, over random conversations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bard_core.diffusion.layout import CLEAN, NOISY, TokenTable, attention_mask, sample_layout


@st.composite
def conversations(draw):
    cursor, turns = 0, []
    for _ in range(draw(st.integers(1, 3))):
        start = cursor + draw(st.integers(0, 6))
        end = start + draw(st.integers(1, 9))
        turns.append((start, end))
        cursor = end
    return cursor + draw(st.integers(0, 3)), turns, draw(st.sampled_from([1, 2, 4, 8]))


@settings(max_examples=60, deadline=None)
@given(conversations())
def test_noisy_tokens_cover_every_turn_in_whole_blocks(case):
    length, turns, size = case
    layout = sample_layout(length, turns, size)
    for index, (start, end) in enumerate(turns):
        mine = layout.turn_R == index
        assert int(mine.sum()) % size == 0
        assert layout.source_R[mine & ~layout.tail_R].tolist() == list(range(start, end))
        later = sample_layout(length, turns, size, context=index)
        assert torch.equal(later.clean_block_N, layout.clean_block_N)
        assert torch.equal(later.block_R, layout.block_R[layout.turn_R >= index])
    counts = torch.bincount(layout.block_R)
    assert set(counts[counts > 0].tolist()) == {size}
    assert (layout.clean_block_N.diff() >= 0).all()
    # a noisy token is in the same block as the clean token it copies
    real = ~layout.tail_R
    assert torch.equal(layout.block_R[real], layout.clean_block_N[layout.source_R[real]])


@settings(max_examples=40, deadline=None)
@given(conversations(), st.sampled_from(["block", "causal", "released"]))
def test_rule_token_by_token(case, clean_attention):
    length, turns, size = case
    layout = sample_layout(length, turns, size)
    copies = layout.source_R.numel()
    table = TokenTable(
        sample=torch.zeros(length + copies, dtype=torch.long),
        position=torch.cat([torch.arange(length), layout.source_R]),
        block=torch.cat([layout.clean_block_N, layout.block_R]),
        role=torch.tensor([CLEAN] * length + [NOISY] * copies),
    )
    mask = attention_mask(table, table, clean_attention)
    for q in range(length + copies):
        for k in range(length + copies):
            q_noisy, k_noisy = q >= length, k >= length
            qb, kb = int(table.block[q]), int(table.block[k])
            if not q_noisy:
                before = k <= q if clean_attention == "causal" else kb <= qb
                seen = before and (clean_attention == "released" or not k_noisy)
            else:
                seen = kb == qb if k_noisy else kb < qb
            assert bool(mask[q, k]) == seen


def test_samples_of_a_row_do_not_see_each_other(training_mask):
    one = training_mask(3, 4, 2)
    size = one.shape[0]
    layout = sample_layout(7, [(3, 7)], 2)
    single = TokenTable(
        torch.zeros(size, dtype=torch.long),
        torch.cat([torch.arange(7), layout.source_R]),
        torch.cat([layout.clean_block_N, layout.block_R]),
        torch.tensor([CLEAN] * 7 + [NOISY] * 4),
    )
    both = TokenTable(
        torch.arange(2).repeat_interleave(size), single.position.repeat(2), single.block.repeat(2), single.role.repeat(2)
    )
    assert torch.equal(attention_mask(both, both), torch.block_diag(one, one).bool())


@pytest.mark.parametrize("turns", [[(4, 4)], [(2, 9)], [(0, 3), (2, 5)]])
def test_impossible_turns_are_refused(turns):
    with pytest.raises(ValueError, match="turn"):
        sample_layout(8, turns, 4)
