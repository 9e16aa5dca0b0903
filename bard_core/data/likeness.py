"""Which images look alike, among millions: looks (``images.look_of``) that differ in at most ``ALIKE`` of their 256 bits.

A look is cut into one band more than the bits that may differ, so that two that are alike agree in at least one whole band: only
those are compared.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from bard_core.data.images import LOOK_BYTES

ALIKE = 10  # a picture as PNG and as JPEG of quality 75 differs in up to 6 bits, two lab pictures of other cells in 62 and more
_EDGES = (*range(0, LOOK_BYTES, 3), LOOK_BYTES)  # bytes: eleven bands
assert len(_EDGES) - 1 > ALIKE
_PAIRS_AT_A_TIME = 1 << 22


def alike(looks: Any, others: Any) -> Any:
    """Pairs (i, j), sorted, of which ``looks[i]`` and ``others[j]`` are alike; [pairs, 2]. Both are [n, LOOK_BYTES] bytes."""
    if not len(looks) or not len(others):
        return np.empty((0, 2), np.int64)
    (mine, my_copies), (theirs, their_copies) = _distinct(looks), _distinct(others)
    found = [pairs for first, end in pairwise(_EDGES) for pairs in _band(mine, theirs, first, end)]
    distinct = np.unique(np.concatenate([*found, np.empty((0, 2), np.int64)]), axis=0)
    pairs = [np.array([(i, j) for i in my_copies[a] for j in their_copies[b]], np.int64) for a, b in distinct.tolist()]
    return np.unique(np.concatenate([*pairs, np.empty((0, 2), np.int64)]), axis=0)


def _distinct(looks: Any) -> tuple[Any, list[Any]]:
    """Each look once, and where it occurs."""
    rows = np.ascontiguousarray(looks).view(f"V{LOOK_BYTES}").reshape(-1)
    values, inverse = np.unique(rows, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    places = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
    return np.frombuffer(values.tobytes(), np.uint8).reshape(-1, LOOK_BYTES), places


def _band(mine: Any, theirs: Any, first: int, end: int) -> Iterator[Any]:
    """Pairs alike among those that agree in bytes ``first`` to ``end``."""
    my_key, their_key = _key(mine, first, end), _key(theirs, first, end)
    order = np.argsort(their_key, kind="stable")
    their_key = their_key[order]
    low, high = (np.searchsorted(their_key, my_key, side=side) for side in ("left", "right"))
    counts = high - low
    bounds = np.searchsorted(np.cumsum(counts), np.arange(0, counts.sum() + 1, _PAIRS_AT_A_TIME), side="right")
    for start, stop in zip(bounds, [*bounds[1:], len(counts)], strict=True):
        some = counts[start:stop]
        i = np.repeat(np.arange(start, stop), some)
        within = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)
        j = order[np.repeat(low[start:stop], some) + within]
        near = differing(mine[i], theirs[j]) <= ALIKE
        yield np.stack([i[near], j[near]], axis=1)


def differing(looks: Any, others: Any) -> Any:
    """In how many bits looks [..., LOOK_BYTES] differ, one by one."""
    return np.bitwise_count(looks.view(np.uint64) ^ others.view(np.uint64)).sum(axis=-1, dtype=np.int64)


def _key(looks: Any, first: int, end: int) -> Any:
    key = np.zeros(len(looks), np.uint32)
    for place in range(first, end):
        key = (key << np.uint32(8)) | looks[:, place]
    return key
