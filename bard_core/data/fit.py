"""Rows have a limit: a sample that would be longer laid out than a row loses whole turns at its end.

Laid out, a sample is its clean tokens and, for every noisy copy, its turns with each one's last block filled up. One whose first
turn does not fit is left out. Both are counted and told.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bard_core.data.examples import Example
from bard_core.data.reader import Reader

log = logging.getLogger(__name__)
Turns = Sequence[tuple[int, int]]


class RowsTooShortError(ValueError):
    """No sample fits a row: says how long the shortest is."""


def laid_out_length(length: int, turns: Turns, block_size: int | None, copies: int) -> int:
    """Tokens of a row that a sample takes with noisy copies of ``turns``; ``block_size`` None: no noisy stream."""
    return length + copies * sum(math.ceil((end - start) / (block_size or 1)) * (block_size or 1) for start, end in turns)


def turns_that_fit(length: int, turns: Turns, block_size: int | None, copies: int, limit: int, context: int = 0) -> int:
    """How many of a sample's turns stay; its clean tokens then end with the last of them. All, when it fits as it is.

    The first ``context`` turns carry no loss, except the last that stays.
    """
    if laid_out_length(length, turns[context:], block_size, copies) <= limit:
        return len(turns)
    shorter = ((n, turns[n - 1][1], turns[min(context, n - 1) : n]) for n in range(len(turns), 0, -1))
    return next((n for n, end, learned in shorter if laid_out_length(end, learned, block_size, copies) <= limit), 0)


class Fitted:
    """A reader's samples as rows of ``limit`` tokens take them; only those that are too long are looked at.

    Args:
        image_token_id: a visual token's id. merge_size: patches a side of one visual token.

    Raises:
        RowsTooShortError: none is left.
    """

    def __init__(
        self, reader: Reader, block_size: int | None, copies: int, limit: int, image_token_id: int, merge_size: int
    ) -> None:
        self._state = (reader, block_size, copies, limit, image_token_id, merge_size)
        self._reader, self._image_token_id, self._merged = reader, image_token_id, merge_size**2
        long = _too_long(reader, block_size, copies, limit)
        kept = {i: _fitting(reader, i, block_size, copies, limit) for i in long}
        self._chosen = np.setdiff1d(np.arange(len(reader)), [i for i, turns in kept.items() if not turns])
        self._kept = {i: turns for i, turns in kept.items() if turns}
        if not len(self._chosen):
            raise _too_short(reader, block_size, copies, limit)
        self.index, self.units, self.samples = reader.index, reader.units, reader.samples[self._chosen]
        self.told = (
            f"of {len(reader)} samples, {len(self._kept)} are too long for rows of {limit} tokens and lose turns at their end; "
            f"{len(reader) - len(self)} are left out, whose first turn alone is too long (train.max_tokens_per_row)"
            if kept
            else ""
        )

    def __reduce__(self) -> Any:
        return Fitted, self._state

    def like(self, reader: Reader) -> "Fitted":
        """Another reader's samples, fitted in the same way."""
        return Fitted(reader, *self._state[1:])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, i: int) -> Example:
        at = int(self._chosen[i])
        example = self._reader[at]
        return self._cut(example, self._kept[at]) if at in self._kept else example

    def _cut(self, example: Example, kept: int) -> Example:
        """A sample up to the end of its ``kept``-th turn, with the images that are shown there."""
        end = example.turns[kept - 1][1]
        ids = example.input_ids_N[:end]
        visual, shown = int((ids == self._image_token_id).sum()), 0
        while visual > 0:
            visual -= math.prod(example.grid_thw[shown]) // self._merged
            shown += 1
        images, grids = example.images[:shown], example.grid_thw[:shown]
        context = min(example.context, kept - 1)
        return replace(example, input_ids_N=ids, turns=example.turns[:kept], images=images, grid_thw=grids, context=context)


def check_rows(reader: Reader, block_size: int | None, copies: int, limit: int) -> None:
    """Refuse rows in which no sample would fit; reads lengths only.

    Raises:
        RowsTooShortError: see ``Fitted``.
    """
    long = _too_long(reader, block_size, copies, limit)
    if len(long) == len(reader) and not any(_fitting(reader, i, block_size, copies, limit) for i in long):
        raise _too_short(reader, block_size, copies, limit)


def _too_long(reader: Reader, block_size: int | None, copies: int, limit: int) -> list[int]:
    """Numbers of the samples that take more than a row, by the index alone."""
    found: list[int] = np.flatnonzero(reader.index.laid_out(block_size, copies)[reader.samples] > limit).tolist()
    return found


def _fitting(reader: Reader, i: int, block_size: int | None, copies: int, limit: int) -> int:
    """Turns that stay of a sample that is too long as it is."""
    turns = _turns(reader, i)
    context = len(turns) - reader.index.learned(int(reader.samples[i]))
    return turns_that_fit(limit + 1, turns, block_size, copies, limit, context)


def _turns(reader: Reader, i: int) -> list[tuple[int, int]]:
    return [(start, end) for start, end in reader.row(i, ("turns",))["turns"].as_py()]


def _too_short(reader: Reader, block_size: int | None, copies: int, limit: int) -> RowsTooShortError:
    every = (_turns(reader, i) for i in range(len(reader)))
    shortest = min((laid_out_length(turns[0][1], turns[:1], block_size, copies) for turns in every if turns), default=0)
    return RowsTooShortError(
        f"train.max_tokens_per_row is {limit}, but the shortest of {len(reader)} samples takes {shortest} tokens laid out with "
        f"its first turn (block size {block_size or 'none'}, {copies} noisy copies): set it to at least {shortest}"
    )
