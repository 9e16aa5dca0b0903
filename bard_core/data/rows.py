"""Rows have a limit: a sample that would be longer laid out than a row loses whole turns at its end.

Laid out, a sample is its clean tokens and, for every noisy copy, its turns with each one's last block filled up. One whose first
turn does not fit is left out. Both are counted and told.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bard_core.data.examples import Example

log = logging.getLogger(__name__)


class RowsTooShortError(ValueError):
    """No sample fits a row: says how long the shortest is."""


def laid_out_length(length: int, turns: Sequence[tuple[int, int]], block_size: int | None, copies: int) -> int:
    """Tokens of a row that a sample takes; ``block_size`` None: no noisy stream."""
    return length + copies * sum(math.ceil((end - start) / (block_size or 1)) * (block_size or 1) for start, end in turns)


def turns_that_fit(length: int, turns: Sequence[tuple[int, int]], block_size: int | None, copies: int, limit: int) -> int:
    """How many of a sample's turns stay; its clean tokens then end with the last of them. All, when it fits as it is."""
    if laid_out_length(length, turns, block_size, copies) <= limit:
        return len(turns)
    kept = 0
    while kept < len(turns) and laid_out_length(turns[kept][1], turns[: kept + 1], block_size, copies) <= limit:
        kept += 1
    return kept


def fit_to_rows(examples: Sequence[Example], block_size: int | None, copies: int, limit: int, processor: Any) -> list[Example]:
    """The samples as rows of ``limit`` tokens take them.

    Raises:
        RowsTooShortError: none is left.
    """
    fitted: list[Example] = []
    cut = left_out = 0
    for example in examples:
        length = len(example.input_ids_N)
        kept = turns_that_fit(length, example.turns, block_size, copies, limit)
        if kept == 0 and example.turns:
            left_out += 1
        elif kept == len(example.turns) and (kept or length <= limit):
            fitted.append(example)
        else:
            cut += 1
            fitted.append(_cut(example, kept, processor))
    if examples and not fitted:
        raise _too_short([e.turns for e in examples], block_size, copies, limit)
    if cut or left_out:
        log.warning(
            "of %d samples, %d are too long for rows of %d tokens and lost turns at their end; %d are left out, whose first turn "
            "alone is too long (train.max_tokens_per_row)",
            len(examples), cut, limit, left_out,
        )  # fmt: skip
    return fitted


def check_rows(folder: Path, block_size: int | None, copies: int, limit: int) -> None:
    """Refuse rows in which no training sample of a prepared dataset would fit; reads lengths only.

    Raises:
        RowsTooShortError: see ``fit_to_rows``.
    """
    import pyarrow.parquet as pq

    every = []
    for shard in sorted((folder / "train").glob("*.parquet")):
        for row in pq.read_table(shard, columns=["turns"]).to_pylist():
            turns = [(start, end) for start, end in row["turns"]]
            if not turns or laid_out_length(turns[0][1], turns[:1], block_size, copies) <= limit:
                return
            every.append(turns)
    raise _too_short(every, block_size, copies, limit)


def _too_short(every: Sequence[Sequence[tuple[int, int]]], block_size: int | None, copies: int, limit: int) -> RowsTooShortError:
    shortest = min((laid_out_length(turns[0][1], turns[:1], block_size, copies) for turns in every if turns), default=0)
    return RowsTooShortError(
        f"train.max_tokens_per_row is {limit}, but the shortest of {len(every)} samples takes {shortest} tokens laid out with "
        f"its first turn (block size {block_size or 'none'}, {copies} noisy copies): set it to at least {shortest}"
    )


def _cut(example: Example, kept: int, processor: Any) -> Example:
    """A sample up to the end of its ``kept``-th turn, with the images that are shown there."""
    end = example.turns[kept - 1][1]
    ids = example.input_ids_N[:end]
    visual, merged = int((ids == processor.image_token_id).sum()), processor.image_processor.merge_size**2
    shown = 0
    while visual > 0:
        visual -= math.prod(example.grid_thw[shown]) // merged
        shown += 1
    return replace(
        example, input_ids_N=ids, turns=example.turns[:kept], images=example.images[:shown], grid_thw=example.grid_thw[:shown]
    )
