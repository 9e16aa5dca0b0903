"""A step's samples to rows of about equal length, shared out evenly over micro-batches and ranks, from their known lengths.

A row is padded to the longest of its micro-batch, and ranks wait for the slowest, so both want equals together. Samples go
longest first into the row that has most room. The rows are as few as hold them all within the row length.
"""

import heapq
from collections.abc import Sequence

Rows = list[list[int]]


def fill(lengths: Sequence[int], rows: int) -> Rows:
    """Samples by row, longest first into the emptiest row. No row stays empty when there are samples enough."""
    loads = [(0, row) for row in range(rows)]
    filled: Rows = [[] for _ in range(rows)]
    for sample in sorted(range(len(lengths)), key=lambda sample: -lengths[sample]):
        load, row = loads[0]
        filled[row].append(sample)
        heapq.heapreplace(loads, (load + lengths[sample], row))
    return filled


def lay_rows(lengths: Sequence[int], row_tokens: int, groups: int = 1) -> Rows:
    """The fewest rows, a multiple of ``groups``, none above ``row_tokens`` (or the longest sample, when that is longer).

    Longest row first; fewer only where each sample has a row of its own.

    Raises:
        ValueError: fewer samples than groups.
    """
    if len(lengths) < groups:
        raise ValueError(f"{len(lengths)} samples cannot fill {groups} micro-batches")
    room = max(row_tokens, *lengths)
    each = max(1, -(-sum(lengths) // (groups * room)))
    while True:
        rows = fill(lengths, groups * each)
        loads = [sum(lengths[sample] for sample in row) for row in rows]
        if max(loads) <= room:
            order = sorted(range(len(rows)), key=lambda row: -loads[row])
            return [rows[row] for row in order if rows[row]]
        each += 1


def share_out(lengths: Sequence[int], row_tokens: int, world: int, parts: int) -> list[list[Rows]]:
    """The rows of a step by micro-batch, then rank. The ranks' rows of one micro-batch are neighbours in length.

    No micro-batch is empty: all ranks run as many forward passes.
    """
    groups = world * parts
    rows = lay_rows(lengths, row_tokens, groups)
    batches = [rows[len(rows) * group // groups : len(rows) * (group + 1) // groups] for group in range(groups)]
    return [batches[part * world : (part + 1) * world] for part in range(parts)]
