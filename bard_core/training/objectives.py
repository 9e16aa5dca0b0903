"""The three objectives, each a small module around the stock model: AR, PBM (paper eq. 4) and SWD (paper eq. 6).

Logits exist only where there is loss: hidden states of supervised positions are gathered before the head, and head and loss
run in chunks (see ``training.head``).

The loss is a weighted sum of parts, by which it is also logged: ``ce`` (the denoising loss of the noisy stream), ``kl`` and
``teacher_entropy`` (distillation; forward, their difference is the KL divergence), ``ar`` (next token, clean stream).

Shape suffixes: B rows, L row length, P supervised positions, D hidden size, V vocabulary, K teacher's top tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bard_core.config.sections.swd import SWDConfig
from bard_core.data.batch import Batch, Supervision
from bard_core.diffusion.losses import (
    cross_entropy_tokens,
    denoising_tokens,
    teacher_entropy_tokens,
    topk_distillation_tokens,
)
from bard_core.diffusion.names import NoiseName, NoiseSchedule, TrainedAttention
from bard_core.models.attention import ImageFeatures, Patches, hidden_states, training_attention
from bard_core.models.vlm import vision_parameters
from bard_core.training.head import chunk_rows, head_loss
from bard_core.training.teacher import Teacher

Images = ImageFeatures | Patches | None
Parts = dict[str, Tensor]
CLEAN_PARTS = {"ar"}  # every other part is of the noisy stream


class Loss(NamedTuple):
    """Weighted sums over a batch's noisy and clean stream (None: not in this loss). The step divides each by its stream's weight
    in the global batch. Detached: the sum of each part, before its share of the loss; each sample's own loss [S]."""

    noisy: Tensor | None
    clean: Tensor | None
    parts: Parts
    samples_S: Tensor


def gather(hidden_BLD: Tensor, where: Supervision) -> Tensor:
    """Hidden states of the supervised positions [P, D]."""
    return hidden_BLD.flatten(0, 1)[where.index_P]


class Objective(nn.Module):
    """A model to train and how. ``forward`` takes a batch and its image features and returns a :class:`Loss`.

    Args:
        shares: how much of each part the loss takes, by name; 0: the part is only logged.
    """

    def __init__(self, model: Any, clean_attention: TrainedAttention, shares: dict[str, float]) -> None:
        super().__init__()
        self.model = model
        self.clean_attention: TrainedAttention = clean_attention
        self.shares = shares

    def body(self, batch: Batch, images: Images) -> Tensor:
        mask = training_attention(batch.table_BL, self.clean_attention)
        hidden_BLD = hidden_states(self.model, batch.input_ids_BL, batch.position_ids_CBL, mask, images, batch.image_at_T)
        # Ranks reduce their gradients in step, so a batch of text alone gives the vision side one too: zero.
        idle = [p for p in vision_parameters(self.model) if p.requires_grad] if images is None else []
        return hidden_BLD + 0.0 * sum(p.sum() for p in idle) if idle else hidden_BLD

    @torch.no_grad()
    def measure(self, batch: Batch, images: Images) -> Tensor:
        """[noisy, clean] x [cross entropy, tokens guessed, weight]: weighted sums over the supervised positions."""
        hidden_BLD = self.body(batch, images)
        return torch.stack([self._guesses(hidden_BLD, where) for where in (batch.noisy, batch.clean)])

    def _guesses(self, hidden_BLD: Tensor, where: Supervision) -> Tensor:
        head = self.model.get_output_embeddings()
        rows = chunk_rows(head.weight.shape[0], hidden_BLD.device)
        sums = torch.zeros(3, device=hidden_BLD.device)
        pieces = (tensor.split(rows) for tensor in (gather(hidden_BLD, where), where.target_P, where.weight_P))
        for hidden_PD, target_P, weight_P in zip(*pieces, strict=True):
            logits_PV = head(hidden_PD).float()
            guessed_P = (logits_PV.argmax(-1) == target_P).float()
            terms = (cross_entropy_tokens(logits_PV, target_P), guessed_P, torch.ones_like(weight_P))
            sums += torch.stack([(term * weight_P).sum() for term in terms])
        return sums

    def losses(self, batch: Batch, images: Images, noisy_tokens: Callable[..., Parts] | None, *more_P: Tensor) -> Loss:
        """The loss of both streams from one forward.

        ``noisy_tokens(logits, target, noisy, t, *more)`` gives token losses of the noisy stream by part; None: it has no share.
        """
        hidden_BLD = self.body(batch, images)
        device = hidden_BLD.device
        parts = {name: torch.zeros((), device=device) for name in self.shares}
        samples_S = torch.zeros(len(batch.sample_ids), device=device)
        noisy = clean = None
        if noisy_tokens is not None:
            noisy = self._stream(hidden_BLD, batch.noisy, noisy_tokens, parts, samples_S, *more_P)
        if "ar" in self.shares:
            clean = self._stream(hidden_BLD, batch.clean, _next_token, parts, samples_S)
        return Loss(noisy, clean, parts, samples_S)

    def _stream(
        self,
        hidden_BLD: Tensor,
        where: Supervision,
        tokens: Callable[..., Parts],
        parts: Parts,
        samples_S: Tensor,
        *more_P: Tensor,
    ) -> Tensor:
        """Weighted sum of a stream's token losses, a scalar to differentiate; ``parts`` and ``samples_S`` are added to."""

        def weighted(logits_PV: Tensor, sample: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
            loss_P = torch.zeros_like(weight)
            for name, tokens_P in tokens(logits_PV, *rest).items():
                weighted_P = tokens_P * weight
                parts[name] += weighted_P.detach().sum()
                loss_P = loss_P + self.shares[name] * weighted_P
            samples_S.index_add_(0, sample, loss_P.detach())
            return loss_P.sum()

        head = self.model.get_output_embeddings()
        supervision = (where.sample_P, where.weight_P, where.target_P, where.noisy_P, where.t_P)
        return head_loss(head, weighted, gather(hidden_BLD, where), *supervision, *more_P)


class Autoregressive(Objective):
    """Next-token prediction on the assistant turns, through the same layout with no noisy stream."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, "causal", {"ar": 1.0})

    def forward(self, batch: Batch, images: Images) -> Loss:
        return self.losses(batch, images, None)


class ProgressiveBlockMerging(Objective):
    """Denoise the noisy stream's blocks (paper eq. 4); with ``ar_weight``, beside next-token prediction on a causal clean one."""

    def __init__(
        self,
        model: Any,
        clean_attention: TrainedAttention,
        noise: NoiseName,
        ar_weight: float,
        schedule: NoiseSchedule = "linear",
    ) -> None:
        super().__init__(model, clean_attention, _beside_ar({"ce": 1.0}, ar_weight))
        self.noise: NoiseName = noise
        self.schedule: NoiseSchedule = schedule

    def forward(self, batch: Batch, images: Images) -> Loss:
        def denoise(logits: Tensor, target: Tensor, noisy: Tensor, t: Tensor) -> Parts:
            return {"ce": denoising_tokens(batch.noise or self.noise, logits, target, noisy, t, self.schedule)}

        return self.losses(batch, images, denoise)


class StageWiseDistillation(Objective):
    """Large-block student, frozen small-block teacher, one noise under both masks: CE + weighted top-k KL (paper eq. 6).

    The KL is taken where the teacher has a block. It has none past its own last block of a turn, where the student's longer
    one still has a tail. ``teacher`` None: it is set before the first batch.
    """

    def __init__(
        self, model: Any, clean_attention: TrainedAttention, teacher: Teacher | None, config: SWDConfig, ar_weight: float
    ) -> None:
        shares = {"ce": config.ce_weight, "kl": config.kl_weight, "teacher_entropy": 0.0}
        super().__init__(model, clean_attention, _beside_ar(shares, ar_weight))
        self.config = config
        self.teacher = teacher  # no module: it is neither sharded, optimised nor saved

    def forward(self, batch: Batch, images: Images) -> Loss:
        config = self.config
        if self.teacher is None:
            raise ValueError("distillation was asked for a loss before it was given its teacher")
        indices_PK, logits_PK = self.teacher(batch)
        known_P = batch.teacher_knows_P if batch.teacher_knows_P is not None else torch.ones_like(batch.noisy.t_P)

        def distil(
            logits: Tensor, target: Tensor, noisy: Tensor, t: Tensor, indices: Tensor, teacher: Tensor, known: Tensor
        ) -> Parts:
            if config.ce_weighting == "none":
                ce = cross_entropy_tokens(logits, target)
            else:
                name = batch.noise or config.noise.name
                ce = denoising_tokens(name, logits, target, noisy, t, config.noise.schedule)
            kl = topk_distillation_tokens(logits, indices, teacher, config.direction, config.temperature)
            return {"ce": ce, "kl": kl * known, "teacher_entropy": teacher_entropy_tokens(teacher, config.temperature) * known}

        return self.losses(batch, images, distil, indices_PK, logits_PK, known_P)


def _beside_ar(shares: dict[str, float], ar_weight: float) -> dict[str, float]:
    """(1 - ar_weight) x the noisy stream's parts + ar_weight x the clean stream's; without a weight no clean stream at all."""
    if not ar_weight:
        return shares
    return {**{name: (1 - ar_weight) * share for name, share in shares.items()}, "ar": ar_weight}


def _next_token(logits: Tensor, target: Tensor, noisy: Tensor, t: Tensor) -> Parts:
    return {"ar": cross_entropy_tokens(logits, target)}
