"""A row of a batch on its way: what it has said, whether it is done, and what it cost."""

import torch

from bard_core.decoding.output import RowStats
from bard_core.decoding.settings import Settings


class Row:
    """One row.

    Attributes:
        index: its place in the batch that was asked for. pad: padding tokens at its left.
        response: tokens so far. steps: denoising steps of every block.
        ended: an end token or stop string came. done: it did, or the cap is reached.
    """

    def __init__(self, index: int, pad: int, settings: Settings, device: torch.device) -> None:
        self.index, self.pad, self.settings = index, pad, settings
        self.response: list[int] = []
        self.steps: list[int] = []
        self.ended = self.done = False
        self.generator = torch.Generator(device) if settings.temperature > 0 else None

    @property
    def left(self) -> int:
        """Tokens until the cap."""
        return self.settings.ending.max_new_tokens - len(self.response)

    def draw_anew(self) -> torch.Generator:
        """The row's own generator, started for its next block: no other row, nor how long that took, decides what it draws."""
        assert self.generator is not None
        start = (self.settings.seed + self.index) * 1_000_003 + len(self.steps)
        return self.generator.manual_seed(start % 2**63)

    def take(self, block: list[int]) -> tuple[int, ...]:
        """Append a final block, cut where the response ends; returns what is new."""
        ending = self.settings.ending
        new, self.done = ending.cut(self.response, block)
        self.response += new
        self.ended = self.done and (self.left > 0 or any(token in ending.eos_token_ids for token in block))
        return tuple(new)

    @property
    def stats(self) -> RowStats:
        """A row is charged its own steps and commits, not those that others needed."""
        commits = len(self.steps) - self.ended if self.settings.schedule == "paper" else 0
        return RowStats(len(self.response), sum(self.steps) + commits, tuple(self.steps))


def refuse_broken(broken: bool, row: int, place: str) -> None:
    """Stop a decode whose logits say nothing.

    Raises:
        FloatingPointError: if ``broken``.
    """
    if broken:
        raise FloatingPointError(
            f"row {row}: the model's logits are not finite in {place}; its weights or the prompt's pixels hold NaN or inf, or "
            "activations overflow: try it in float32, and without the prompt's images"
        )
