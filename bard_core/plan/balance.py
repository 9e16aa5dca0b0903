"""How evenly a stage's ranks will be loaded: its steps' rows as they will be laid, from the index of its dataset.

Nothing else is read, for the index knows every sample's length.
"""

from dataclasses import dataclass

import numpy as np

from bard_core.config.sections.train import TrainConfig
from bard_core.data.bins import share_out
from bard_core.data.index import Index
from bard_core.data.order import Order

STEPS = 32


@dataclass(frozen=True)
class Balance:
    """Of a stage's first steps.

    Attributes:
        tokens_per_sample: mean, noisy copies included. image_tokens_per_sample: of them.
        useful: share of computed tokens that are no padding.
        in_step: share of the ranks' time that is work, when all wait for the slowest at each micro-batch.
        rows, row_tokens: of the largest micro-batch of a rank.
    """

    tokens_per_sample: int
    image_tokens_per_sample: int
    useful: float
    in_step: float
    rows: int
    row_tokens: int


def balance(index: Index, train: TrainConfig, block_size: int | None, copies: int, workers: int, steps: int = STEPS) -> Balance:
    """Lay out the first ``steps`` steps as ``data.feed`` will.

    Args:
        block_size: None: autoregressive. copies: noisy streams of each sample.

    Raises:
        ValueError: a step has fewer samples than micro-batches.
    """
    samples = index.train
    lengths = np.minimum(index.laid_out(block_size, copies)[samples], train.max_tokens_per_row)
    order = Order(index.unit[samples], index.repeat[samples], train.seed)
    tokens = images = computed = waited = 0
    largest = (0, 0)
    for step in range(steps):
        picks = [sample for sample, _ in order.picks(step * train.batch_size, (step + 1) * train.batch_size)]
        mine = lengths[picks].tolist()
        tokens += sum(mine)
        images += int(index.visual_tokens[samples][picks].sum())
        for ranks in share_out(mine, train.max_tokens_per_row, workers, train.accumulation):
            shapes = [(len(rows), max(sum(mine[at] for at in row) for row in rows)) for rows in ranks]
            cells = [rows * length for rows, length in shapes]
            computed, waited = computed + sum(cells), waited + workers * max(cells)
            largest = max(largest, *shapes, key=lambda shape: shape[0] * shape[1])
    count = steps * train.batch_size
    return Balance(
        tokens_per_sample=round(tokens / count),
        image_tokens_per_sample=round(images / count),
        useful=tokens / computed,
        in_step=computed / waited,
        rows=largest[0],
        row_tokens=largest[1],
    )
