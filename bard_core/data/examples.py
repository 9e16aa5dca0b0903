"""Prepared samples as training reads them, and which of them a step takes.

A step's samples depend on (seed, step) alone, so resuming needs no state but the step number. Ranks take strided shares of the
same global batch.

Shape suffixes: N tokens, C position channels (3 for multimodal rope, else 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass
class Example:
    """One prepared conversation. ``turns`` are assistant spans [start, end) with their end token."""

    id: str
    input_ids_N: Tensor
    turns: list[tuple[int, int]]
    images: list[bytes]
    grid_thw: list[list[int]]
    position_ids_CN: Tensor | None = field(default=None, repr=False)


def load_examples(folder: Path, split: str) -> list[Example]:
    """Read ``folder/<split>/*.parquet`` (see data.prepare for the columns).

    Raises:
        FileNotFoundError: the split has no shards.
    """
    import pyarrow.parquet as pq

    shards = sorted((folder / split).glob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{folder / split} has no *.parquet: is this a prepared dataset? Run the prepare stage first")
    columns = ["id", "input_ids", "turns", "images", "image_grid_thw"]
    examples = []
    for shard in shards:
        for row in pq.read_table(shard, columns=columns).to_pylist():
            turns = [(start, end) for start, end in row["turns"]]
            ids = torch.tensor(row["input_ids"], dtype=torch.long)
            examples.append(Example(row["id"], ids, turns, row["images"], row["image_grid_thw"]))
    return examples


def attach_positions(examples: Sequence[Example], model: Any) -> None:
    """Compute every example's position ids once, with the model's own rope index."""
    from bard_core.models.vlm import position_ids

    for example in examples:
        grid = torch.tensor(example.grid_thw) if example.grid_thw else None
        example.position_ids_CN = position_ids(model, example.input_ids_N, grid)


def step_samples(num_examples: int, step: int, batch_size: int, seed: int) -> list[tuple[int, int]]:
    """The global batch of a step as (example index, epoch) pairs: a walk over per-epoch permutations."""
    chosen = []
    permutations: dict[int, Tensor] = {}
    for cursor in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(cursor, num_examples)
        if epoch not in permutations:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            permutations[epoch] = torch.randperm(num_examples, generator=generator)
        chosen.append((int(permutations[epoch][place]), epoch))
    return chosen
