"""Rows and their shares: every sample once, nothing above its room, and little padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bard_core.data.bins import lay_rows, share_out

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=80)


@given(LENGTHS, st.integers(64, 4096), st.integers(1, 4), st.integers(1, 3))
def test_every_sample_once_and_no_micro_batch_empty(lengths, row_tokens, world, parts):
    if len(lengths) < world * parts:
        with pytest.raises(ValueError, match="cannot fill"):
            share_out(lengths, row_tokens, world, parts)
        return
    shares = share_out(lengths, row_tokens, world, parts)
    assert [len(part) for part in shares] == [world] * parts
    rows = [row for part in shares for batch in part for row in batch]
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(row for row in rows) and all(batch for part in shares for batch in part)
    room = max(row_tokens, max(lengths))
    assert all(sum(lengths[sample] for sample in row) <= room for row in rows)


def shares_of(lengths, row_tokens, world, parts):
    """(useful tokens of those computed, useful tokens of those that ranks in step have time for)."""
    computed = waited = 0
    for part in share_out(lengths, row_tokens, world, parts):
        cells = [len(rows) * max(sum(lengths[sample] for sample in row) for row in rows) for rows in part]
        computed, waited = computed + sum(cells), waited + world * max(cells)
    return sum(lengths) / computed, sum(lengths) / waited


@pytest.mark.parametrize(("world", "samples"), [(1, 256), (8, 256), (64, 2048)])
def test_little_is_padding_and_ranks_end_together(world, samples):
    rng = np.random.default_rng(0)
    clean = np.exp(rng.normal(np.log(900), 0.9, samples)).clip(64, 8192).astype(int)
    lengths = (clean + -(-(clean * 0.4).astype(int) // 32) * 32).tolist()
    useful, in_step = shares_of(lengths, 16384, world, 1)
    assert useful > 0.97 and in_step > 0.97


def test_no_more_rows_than_needed():
    assert len(lay_rows([50] * 8, 100)) == 4 and len(lay_rows([50] * 8, 400)) == 1
    assert lay_rows([700, 30, 20], 100) == [[0], [1, 2]]
