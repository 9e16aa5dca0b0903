"""Validation while training: loss and accuracy on held-out samples, at five noise levels.

The samples, their noise and its levels are the same at every look, of every run and stage, so looks can be compared. Nothing that
training draws from is touched: noise has generators of its own, and so has the image cache.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bard_core.config.sections.noise import NoiseConfig
from bard_core.data.batch import Batch
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.feed import Walk
from bard_core.training.curve import Record
from bard_core.training.images import ImageEncoder
from bard_core.training.objectives import Objective
from bard_core.training.parallel import let_go, mixed_precision
from bard_core.training.ranks import rank_and_world, sum_over_ranks

SEED = 0
BANDS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0))


class Validation:
    """Callable: an objective -> {val_loss, val_accuracy, val_loss_t10, val_accuracy_t10, ...}, means over supervised tokens.

    ``t10`` is the band of noise levels around 0.1. Losses are plain cross entropies, without 1/t; what fills up a last block
    does not count. A model with next-token loss has val_ar_loss and val_ar_accuracy, a source model nothing else.

    Args:
        walk: over the held-out samples. samples: how many, spread over the split. at_once: samples a rank's forward takes.
    """

    def __init__(
        self,
        walk: Walk,
        spec: BatchSpec,
        samples: int,
        at_once: int,
        encoder: ImageEncoder,
        precision: str,
        device: torch.device,
    ) -> None:
        self._walk, self._at_once, self._encoder = walk, at_once, encoder
        self._precision, self._device = precision, device
        rank, world = rank_and_world()
        there = len(walk.reader)
        chosen = np.unique(np.linspace(0, there - 1, min(samples, there)).astype(int)).tolist()
        # Ranks run their forwards in step, so all have as many samples; those that fill up count for nothing.
        filled = [(sample, True) for sample in chosen] + [(chosen[0], False)] * (-len(chosen) % world)
        self._mine = filled[rank::world]
        self._specs = [_banded(spec, band) for band in BANDS] if spec.block_size else [spec]
        self._ready: list[list[Batch]] = []

    def __call__(self, objective: Objective) -> Record:
        if not self._ready:
            self._ready = [self._batches(spec, level) for level, spec in enumerate(self._specs)]
        objective.eval()
        table = torch.stack([self._measure(objective, batches) for batches in self._ready])  # [level, stream, sums]
        objective.train()
        let_go(objective)
        noisy, clean = sum_over_ranks(table).double().cpu().unbind(1)
        found: Record = {}
        if len(self._specs) > 1:
            for (low, high), (loss, correct, weight) in zip(BANDS, noisy.tolist(), strict=True):
                level = f"t{50 * (low + high):.0f}"
                found |= {f"val_loss_{level}": loss / max(weight, 1), f"val_accuracy_{level}": correct / max(weight, 1)}
            loss, correct, weight = noisy.sum(0).tolist()
            found |= {"val_loss": loss / max(weight, 1), "val_accuracy": correct / max(weight, 1)}
        if "ar" in objective.shares:
            loss, correct, weight = clean[0].tolist()
            found |= {"val_ar_loss": loss / max(weight, 1), "val_ar_accuracy": correct / max(weight, 1)}
        found.setdefault("val_loss", found.get("val_ar_loss", 0.0))
        return found

    def _batches(self, spec: BatchSpec, level: int) -> list[Batch]:
        groups = [self._mine[at : at + self._at_once] for at in range(0, len(self._mine), self._at_once)]
        batches = []
        for group in groups:
            batch = collate([(self._walk.read(sample), level) for sample, _ in group], spec)
            counts = torch.tensor([float(real) for _, real in group])
            streams: dict[str, Any] = {
                name: replace(where, weight_P=where.weight_P * counts[where.sample_P])
                for name, where in (("noisy", batch.noisy), ("clean", batch.clean))
            }
            batches.append(replace(batch, **streams))
        return batches

    def _measure(self, objective: Objective, batches: list[Batch]) -> torch.Tensor:
        total = torch.zeros(2, 3, device=self._device)
        for batch in batches:
            with torch.no_grad(), mixed_precision(self._precision, self._device):
                images = self._encoder(batch.images, batch.grid_thw, batch.patches)
                total += objective.measure(batch.to(self._device), images)
        return total


def _banded(spec: BatchSpec, band: tuple[float, float]) -> BatchSpec:
    noise = NoiseConfig(name=spec.noise.name, min_t=band[0], max_t=band[1])
    return replace(spec, noise=noise, reduction="token_mean", tail_weight=0.0, teacher_block_size=None, seed=SEED)
