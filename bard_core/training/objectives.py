"""The three objectives, each a small module around the stock model: AR, PBM (paper eq. 4) and SWD (paper eq. 6).

Logits exist only where there is loss: hidden states of supervised positions are gathered before the head, and head and loss
run in chunks (see ``training.head``).

Shape suffixes: B rows, L row length, P supervised positions, D hidden size, V vocabulary, K teacher's top tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bard_core.config.sections import SWDConfig
from bard_core.data.batches import Batch, Supervision
from bard_core.diffusion.losses import MIN_T, generalized_kl_tokens, topk_distillation_tokens
from bard_core.diffusion.names import CleanAttention, NoiseName
from bard_core.models.attention import ImageFeatures, Patches, hidden_states, training_attention
from bard_core.models.vlm import vision_parameters
from bard_core.training.head import head_loss
from bard_core.training.teacher import Teacher

Images = ImageFeatures | Patches | None


class Loss(NamedTuple):
    """Sums of weighted token losses: ``total`` of the supervised stream, ``causal`` of the clean stream beside it (or None); the
    step divides each by that stream's weight in the global batch. Each sample's own sum [S], detached."""

    total: Tensor
    causal: Tensor | None
    samples_S: Tensor


def gather(hidden_BLD: Tensor, where: Supervision) -> Tensor:
    """Hidden states of the supervised positions [P, D]."""
    return hidden_BLD.flatten(0, 1)[where.index_P]


def shares(batch: Batch) -> Tensor:
    """Room for every sample's own loss [S]."""
    return torch.zeros(len(batch.sample_ids), device=batch.input_ids_BL.device)


def denoising_loss(noise: NoiseName, logits_PV: Tensor, targets_P: Tensor, noisy_P: Tensor, t_P: Tensor) -> Tensor:
    """Token losses [P] of a noise: 1/t-weighted CE for mask, generalized KL for uniform, CE for edit and mix."""
    if noise == "uniform":
        return generalized_kl_tokens(logits_PV, targets_P, noisy_P, 1 - t_P)
    ce_P = F.cross_entropy(logits_PV.float(), targets_P, reduction="none")
    return ce_P / t_P.clamp(min=MIN_T) if noise == "mask" else ce_P


class Objective(nn.Module):
    """A model to train and how. ``forward`` takes a batch and its image features and returns a :class:`Loss`."""

    def __init__(self, model: Any, clean_attention: CleanAttention) -> None:
        super().__init__()
        self.model = model
        self.clean_attention: CleanAttention = clean_attention

    def body(self, batch: Batch, images: Images) -> Tensor:
        mask = training_attention(batch.table_BL, self.clean_attention)
        hidden_BLD = hidden_states(self.model, batch.input_ids_BL, batch.position_ids_CBL, mask, images)
        # Ranks reduce their gradients in step, so a batch of text alone gives the vision side one too: zero.
        idle = [p for p in vision_parameters(self.model) if p.requires_grad] if images is None else []
        return hidden_BLD + 0.0 * sum(p.sum() for p in idle) if idle else hidden_BLD

    def head_loss(
        self, hidden_BLD: Tensor, where: Supervision, samples_S: Tensor, loss: Callable[..., Tensor], *more_P: Tensor
    ) -> Tensor:
        """Weighted sum of ``loss(logits, target, noisy, t, *more)`` over the supervised positions; each sample's is added up."""

        def weighted(logits_PV: Tensor, sample: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
            losses_P = loss(logits_PV, *rest) * weight
            samples_S.index_add_(0, sample, losses_P.detach())
            return losses_P.sum()

        head = self.model.get_output_embeddings()
        supervision = (where.sample_P, where.weight_P, where.target_P, where.noisy_P, where.t_P)
        return head_loss(head, weighted, gather(hidden_BLD, where), *supervision, *more_P)


class Autoregressive(Objective):
    """Next-token prediction on the assistant turns, through the same layout with no noisy stream."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, "causal")

    def forward(self, batch: Batch, images: Images) -> Loss:
        samples_S = shares(batch)
        total = self.head_loss(self.body(batch, images), batch.clean, samples_S, _next_token_loss)
        return Loss(total, None, samples_S)


class BlockDiffusion(Objective):
    """A loss on the noisy stream, and beside it with ``ar_weight`` the next-token loss on a causal clean stream."""

    def __init__(self, model: Any, clean_attention: CleanAttention, ar_weight: float) -> None:
        super().__init__(model, clean_attention)
        self.ar_weight = ar_weight

    def weigh(self, batch: Batch, images: Images, noisy_loss: Callable[..., Tensor], *more_P: Tensor) -> Loss:
        """(1 - ar_weight) x the noisy stream's loss + ar_weight x the clean stream's, both from one forward."""
        hidden_BLD = self.body(batch, images)
        samples_S = shares(batch)
        noisy = self.head_loss(hidden_BLD, batch.noisy, samples_S, noisy_loss, *more_P)
        if not self.ar_weight:
            return Loss(noisy, None, samples_S)
        causal = self.head_loss(hidden_BLD, batch.clean, samples_S, _next_token_loss)
        return Loss((1 - self.ar_weight) * noisy, self.ar_weight * causal, samples_S)


class ProgressiveBlockMerging(BlockDiffusion):
    """Denoise the blocks of the noisy stream (paper eq. 4)."""

    def __init__(self, model: Any, clean_attention: CleanAttention, noise: NoiseName, ar_weight: float) -> None:
        super().__init__(model, clean_attention, ar_weight)
        self.noise: NoiseName = noise

    def forward(self, batch: Batch, images: Images) -> Loss:
        def denoise(logits: Tensor, target: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
            return denoising_loss(self.noise, logits, target, noisy, t)

        return self.weigh(batch, images, denoise)


class StageWiseDistillation(BlockDiffusion):
    """Large-block student, frozen small-block teacher, one noise under both masks: CE + weighted top-k KL (paper eq. 6)."""

    def __init__(
        self, model: Any, clean_attention: CleanAttention, teacher: Teacher, config: SWDConfig, ar_weight: float
    ) -> None:
        super().__init__(model, clean_attention, ar_weight)
        self.config = config
        self.teacher = teacher  # no module: it is neither sharded, optimised nor saved

    def forward(self, batch: Batch, images: Images) -> Loss:
        config = self.config
        indices_PK, logits_PK = self.teacher(batch)
        known_P = batch.teacher_knows_P if batch.teacher_knows_P is not None else torch.ones_like(batch.noisy.t_P)

        def distil(
            logits: Tensor, target: Tensor, noisy: Tensor, t: Tensor, indices: Tensor, teacher: Tensor, known: Tensor
        ) -> Tensor:
            ce = denoising_loss(config.noise.name, logits, target, noisy, t)
            kl = topk_distillation_tokens(logits, indices, teacher, config.direction, config.temperature)
            return config.ce_weight * ce + config.kl_weight * kl * known

        return self.weigh(batch, images, distil, indices_PK, logits_PK, known_P)


def _next_token_loss(logits: Tensor, target: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), target, reduction="none")
