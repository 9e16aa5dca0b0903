"""A seeded sample of a source's rows: every row of every shard draws a number, and the ``max_samples`` lowest are in.

Draws depend on (seed, source, shard, row) alone, so the sample is the same whoever reads which shard when.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bard_core.data.sources import Shard


def _draws(seed: int, shard: Shard, rows: int) -> Any:
    key = hashlib.sha256(f"bard-sample/{seed}/{shard.source.name}/{shard.name}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(key[:16], "big"))).random(rows)


def sample_limit(seed: int, shards: Sequence[Shard], rows: Sequence[int], wanted: int) -> float:
    """The highest draw that is in, so that exactly ``wanted`` rows are (all, where there are no more)."""
    if sum(rows) <= wanted:
        return 1.0
    draws = np.concatenate([_draws(seed, shard, count) for shard, count in zip(shards, rows, strict=True)])
    return float(np.partition(draws, wanted - 1)[wanted - 1])


def rows_drawn(seed: int, shard: Shard, limit: float) -> Callable[[int], bool]:
    """Whether the shard's row of a number is in."""
    chunk = 1 << 16
    drawn = _draws(seed, shard, chunk)

    def is_drawn(number: int) -> bool:
        nonlocal drawn
        if number >= len(drawn):
            drawn = _draws(seed, shard, 2 * number)  # its first numbers are the same however many are drawn
        return bool(drawn[number] <= limit)

    return is_drawn
