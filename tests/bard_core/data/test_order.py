"""The walk: each sample as often as its weight says, in an order that follows from (seed, place) and reads near by."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bard_core.data.order import Order


@given(
    units=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=6),
    seed=st.integers(0, 5),
    window=st.integers(1, 20),
)
@settings(max_examples=60)
def test_an_epoch_has_every_place_once_and_any_piece_is_the_same(units, seed, window):
    unit_S = np.repeat(np.arange(len(units)), [len(unit) for unit in units]).astype(np.int32)
    repeat_S = np.concatenate(units).astype(np.int16)
    if not repeat_S.sum():
        with pytest.raises(ValueError, match="no training sample"):
            Order(unit_S, repeat_S, seed, window)
        return
    order = Order(unit_S, repeat_S, seed, window)
    whole = order.picks(0, 2 * len(order))
    for epoch in range(2):
        picks = whole[epoch * len(order) : (epoch + 1) * len(order)]
        wanted = {(s, epoch * int(n) + k) for s, n in enumerate(repeat_S) for k in range(n)}
        assert len(picks) == len(wanted) and set(picks) == wanted  # no draw of a sample comes twice
    again = Order(unit_S, repeat_S, seed, window)
    assert [pick for place in range(2 * len(order)) for pick in again.picks(place, place + 1)] == whole
    ahead = again.units_ahead(0)
    starts = [next(ahead) for _ in range(-(-len(order) // window) + 1)]
    for (start, wanted), (end, _) in pairwise(starts):
        assert {int(unit_S[sample]) for sample, _ in whole[start:end]} == set(wanted)


def test_the_order_is_pinned():
    """Runs that resume under another numpy must find the same order."""
    order = Order(np.repeat(np.arange(4), 5).astype(np.int32), np.ones(20, np.int16), seed=3, window=7)
    assert [sample for sample, _ in order.picks(17, 24)] == [17, 15, 14, 16, 15, 19, 0]


def test_epochs_seeds_and_windows_differ():
    unit_S, one = np.repeat(np.arange(8), 8).astype(np.int32), np.ones(64, np.int16)
    order = Order(unit_S, one, seed=0, window=16)
    first, second = ([sample for sample, _ in order.picks(e * 64, e * 64 + 64)] for e in range(2))
    other = [sample for sample, _ in Order(unit_S, one, seed=1, window=16).picks(0, 64)]
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(64))}) == 4
    assert [unit_S[first[w : w + 16]].tolist() for w in range(0, 64, 16)] != sorted(unit_S.tolist())
    assert all(len(set(unit_S[first[w : w + 16]].tolist())) == 2 for w in range(0, 64, 16))  # a window reads two units


def test_a_step_costs_the_same_in_a_dataset_of_any_size():
    def cost(samples):
        order = Order((np.arange(samples) // 2000).astype(np.int32), np.ones(samples, np.int16), seed=0)
        order.picks(0, 256)
        times = []
        for step in range(1, 40):
            started = time.perf_counter()
            order.picks(step * 256, step * 256 + 256)
            times.append(time.perf_counter() - started)
        return float(np.median(times))

    assert cost(2_000_000) < 5 * cost(50_000) + 1e-3
