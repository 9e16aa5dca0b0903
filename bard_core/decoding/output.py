"""What decoding returns, and how its work is counted (DESIGN decision 8).

``real_tokens``: response tokens up to and including the first end token. ``forwards``: every call of the language body after
prefill that a row took part in, denoising, commits and drafts alike. ``tokens_per_forward`` is their ratio; AR is 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DecodingStats:
    """Counts a row ([B] lists) and times of the whole batch in seconds. ``steps_per_block`` counts denoising steps alone."""

    real_tokens: list[int]
    forwards: list[int]
    steps_per_block: list[list[int]]
    prefill_s: float
    decode_s: float

    @property
    def tokens_per_forward(self) -> float:
        """All rows together."""
        return sum(self.real_tokens) / max(1, sum(self.forwards))

    @property
    def tokens_per_s(self) -> float:
        """Real tokens a second of decoding, prefill not counted."""
        return sum(self.real_tokens) / max(self.decode_s, 1e-9)


@dataclass(frozen=True)
class GenerationOutput:
    """Response ids [B, N], right-padded with the pad token after each row's end token, and the counts."""

    sequences: Tensor
    stats: DecodingStats


def trim(ids_BN: Tensor, end_ids: list[int], pad_id: int, max_new_tokens: int) -> tuple[Tensor, list[int]]:
    """Cut at ``max_new_tokens`` and pad after the first end token; returns (ids [B, N], real tokens a row)."""
    ids = ids_BN[:, :max_new_tokens].clone()
    is_end = torch.isin(ids, torch.tensor(end_ids, device=ids.device))
    first = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, ids.shape[1])
    ids[torch.arange(ids.shape[1], device=ids.device)[None] >= first[:, None]] = pad_id
    real = [int(n) for n in first]
    return ids[:, : max(real, default=0)], real
