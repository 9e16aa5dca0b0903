"""What decoding yields: events while it runs, then the sequences with honest numbers.

``real_tokens`` counts tokens up to and including the first end token. ``forwards`` counts every call of the language body
after the prefill, commits, drafts and verifications included, while the row was active.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowStats:
    """Numbers of one row; ``steps_per_block`` counts denoising steps only (no commits), as the paper's released code does."""

    real_tokens: int
    forwards: int
    steps_per_block: tuple[int, ...] = ()

    @property
    def tokens_per_forward(self) -> float:
        return self.real_tokens / self.forwards if self.forwards else 0.0


@dataclass(frozen=True)
class GenerationStats:
    """Numbers of a call, times in seconds.

    ``batch_forwards`` are calls of the body for the whole batch; ``forwards`` sums the rows' own, so that
    ``tokens_per_forward`` does not grow with the batch. ``time_to_first_token_s`` is, prefill included, until the first block
    (or the first token of an autoregressive decoder) is final. Where the first denoising step rides with the prefill, that call's
    time is shared by tokens: a prompt of L tokens and a block of n give n / (L + n) of it to decoding.
    """

    rows: tuple[RowStats, ...]
    batch_forwards: int
    prefill_s: float
    decode_s: float
    time_to_first_token_s: float

    @property
    def real_tokens(self) -> int:
        return sum(row.real_tokens for row in self.rows)

    @property
    def forwards(self) -> int:
        return sum(row.forwards for row in self.rows)

    @property
    def tokens_per_forward(self) -> float:
        return self.real_tokens / self.forwards if self.forwards else 0.0

    @property
    def steps_per_block(self) -> tuple[tuple[int, ...], ...]:
        """Denoising steps of every block of every row."""
        return tuple(row.steps_per_block for row in self.rows)


@dataclass(frozen=True)
class GenerationOutput:
    """``sequences`` [B, N]: response ids up to and including the end token, then padding; N <= max_new_tokens."""

    sequences: Tensor
    stats: GenerationStats


@dataclass(frozen=True)
class StepEvent:
    """One denoising step of a block. Tensors are [active rows, block] on the model's device; reading them waits for the step.

    ``rows`` are the batch rows they belong to; ``filled`` marks positions that got their token, ``revised`` those whose
    earlier token was taken back at this step. ``confidence`` is the probability of what was proposed there.
    """

    block: int
    step: int
    rows: tuple[int, ...]
    tokens: Tensor
    filled: Tensor
    revised: Tensor | None
    confidence: Tensor | None = None


@dataclass(frozen=True)
class BlockEvent:
    """A block is final: its new real tokens for each active row, and the rows that ended with it."""

    block: int
    rows: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    finished: tuple[int, ...]


@dataclass(frozen=True)
class DoneEvent:
    """The last event."""

    output: GenerationOutput


Event = StepEvent | BlockEvent | DoneEvent


def pad_sequences(responses: list[list[int]], pad_token_id: int, device: torch.device) -> Tensor:
    """[B, N] of the longest row, the others padded at the right."""
    longest = max(len(row) for row in responses)
    return torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in responses], device=device)
