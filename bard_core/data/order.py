"""The walk over a dataset: which sample stands at a place of it, as a pure function of (seed, place).

An epoch shuffles the units, lays their samples end to end, and shuffles that stream again within windows of consecutive places.
So whoever reads on needs the units of a window or two, and finding a place costs the same in a dataset of any size.

Shape suffixes: S samples, E places of an epoch (a sample has as many as its mixing weight says), U units, W places of a window,
P places asked for.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

WINDOW = 32_768
Ints = npt.NDArray[np.integer]


class Order:
    """The walk over samples 0..S-1, which must stand unit by unit.

    Args:
        unit_S: each sample's unit. repeat_S: how many places of an epoch it has.

    Raises:
        ValueError: an epoch has no place.
    """

    def __init__(self, unit_S: Ints, repeat_S: Ints, seed: int, window: int = WINDOW) -> None:
        self.seed, self.window = seed, window
        self.repeat_S = repeat_S
        self.sample_E = np.repeat(np.arange(len(unit_S), dtype=np.int32), repeat_S)
        if not len(self.sample_E):
            raise ValueError("the dataset has no training sample")
        unit_E = unit_S[self.sample_E]
        self.start_U = np.flatnonzero(np.diff(unit_E, prepend=unit_E[0] - 1))
        self.unit_U = unit_E[self.start_U]
        self.size_U = np.diff(self.start_U, append=len(unit_E))
        self._units_of_epoch = lru_cache(2)(self._shuffle_units)
        self._shuffled_window = lru_cache(2)(self._shuffle_window)

    def __len__(self) -> int:
        """Places of an epoch."""
        return len(self.sample_E)

    def picks(self, first: int, last: int) -> list[tuple[int, int]]:
        """(sample, how many times the walk has met it before) at the places [first, last) of the walk."""
        picks: list[tuple[int, int]] = []
        while first < last:
            epoch, start = divmod(first, len(self))
            stop = min(start + last - first, len(self), (start // self.window + 1) * self.window)
            place_P = self._places(epoch, start, stop)
            sample_P = self.sample_E[place_P]
            again_P = place_P - np.searchsorted(self.sample_E, sample_P)
            draw_P = epoch * self.repeat_S[sample_P].astype(np.int64) + again_P
            picks += zip(sample_P.tolist(), draw_P.tolist(), strict=True)
            first += stop - start
        return picks

    def units_ahead(self, first: int) -> Iterator[tuple[int, list[int]]]:
        """From the window of place ``first`` on, for ever: (its first place, the units whose samples stand in it)."""
        epoch, start = divmod(first, len(self))
        while True:
            for window in range(start // self.window, -(-len(self) // self.window)):
                order_U, end_U = self._units_of_epoch(epoch)
                ends = (window * self.window, min((window + 1) * self.window, len(self)) - 1)
                low, high = np.searchsorted(end_U, ends, side="right")
                yield epoch * len(self) + ends[0], self.unit_U[order_U[low : high + 1]].tolist()
            epoch, start = epoch + 1, 0

    def _places(self, epoch: int, start: int, stop: int) -> Ints:
        """Places in ``sample_E`` of the epoch's places [start, stop), all of one window."""
        order_U, end_U = self._units_of_epoch(epoch)
        window = start // self.window
        stream_P = self._shuffled_window(epoch, window)[start - window * self.window : stop - window * self.window]
        nth_P = np.searchsorted(end_U, stream_P, side="right")
        unit_P = order_U[nth_P]
        return self.start_U[unit_P] + stream_P - (end_U[nth_P] - self.size_U[unit_P])

    def _shuffle_units(self, epoch: int) -> tuple[Ints, Ints]:
        """The epoch's order of the units, and where each ends in the stream."""
        order_U = self._permutation(len(self.unit_U), epoch, 0)
        return order_U, np.cumsum(self.size_U[order_U])

    def _shuffle_window(self, epoch: int, window: int) -> Ints:
        first = window * self.window
        return first + self._permutation(min(self.window, len(self) - first), epoch, 1 + window)

    def _permutation(self, size: int, *names: int) -> Ints:
        """By sorting raw 64-bit draws, which numpy promises never to change."""
        draws = np.random.Philox(np.random.SeedSequence([self.seed, *names])).random_raw(size)
        return np.argsort(draws, kind="stable")
