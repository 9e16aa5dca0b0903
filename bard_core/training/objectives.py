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

from bard_core.config import CleanAttention, NoiseName, SWDConfig
from bard_core.data.batches import Batch, Supervision
from bard_core.diffusion.losses import MIN_T, generalized_kl_tokens, topk_distillation_tokens
from bard_core.models.attention import ImageFeatures, Patches, hidden_states, training_attention
from bard_core.training.head import chunk_rows, head_loss

Images = ImageFeatures | Patches | None


class Loss(NamedTuple):
    """Sum of the weighted token losses (divide by the step's global weight), and detached sums to log."""

    total: Tensor
    parts: dict[str, Tensor]


def gather(hidden_BLD: Tensor, where: Supervision) -> Tensor:
    """Hidden states of the supervised positions [P, D]."""
    return hidden_BLD.flatten(0, 1)[where.index_P]


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
        return hidden_states(self.model, batch.input_ids_BL, batch.position_ids_CBL, mask, images)

    def head_loss(self, hidden_BLD: Tensor, where: Supervision, loss: Callable[..., Tensor], *more_P: Tensor) -> Tensor:
        """Weighted sum of ``loss(logits, target, noisy, t, *more)`` over the supervised positions."""

        def weighted(logits_PV: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
            return (loss(logits_PV, *rest) * weight).sum()

        head = self.model.get_output_embeddings()
        supervision = (where.weight_P, where.target_P, where.noisy_P, where.t_P)
        return head_loss(head, weighted, gather(hidden_BLD, where), *supervision, *more_P)


class Autoregressive(Objective):
    """Next-token prediction on the assistant turns, through the same layout with no noisy stream."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, "causal")

    def forward(self, batch: Batch, images: Images) -> Loss:
        total = self.head_loss(self.body(batch, images), batch.clean, _next_token_loss)
        return Loss(total, {"ce": total.detach()})


class ProgressiveBlockMerging(Objective):
    """Denoise the blocks of the noisy stream; with ``ar_weight`` also predict the next token on a causal clean stream."""

    def __init__(self, model: Any, clean_attention: CleanAttention, noise: NoiseName, ar_weight: float) -> None:
        super().__init__(model, clean_attention)
        self.noise: NoiseName = noise
        self.ar_weight = ar_weight

    def forward(self, batch: Batch, images: Images) -> Loss:
        hidden_BLD = self.body(batch, images)

        def denoise(logits: Tensor, target: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
            return denoising_loss(self.noise, logits, target, noisy, t)

        diffusion = self.head_loss(hidden_BLD, batch.noisy, denoise)
        if not self.ar_weight:
            return Loss(diffusion, {"diffusion": diffusion.detach()})
        causal = self.head_loss(hidden_BLD, batch.clean, _next_token_loss)
        total = (1 - self.ar_weight) * diffusion + self.ar_weight * causal
        return Loss(total, {"diffusion": diffusion.detach(), "ar": causal.detach()})


class StageWiseDistillation(Objective):
    """Large-block student, frozen small-block teacher, one noise under both masks: CE + weighted top-k KL (paper eq. 6)."""

    def __init__(self, model: Any, clean_attention: CleanAttention, teacher: Any, config: SWDConfig) -> None:
        super().__init__(model, clean_attention)
        self.config = config
        # Held outside the module tree: the teacher is neither sharded, optimised nor saved.
        self._teacher = [teacher.requires_grad_(False).eval()]

    @torch.no_grad()
    def teacher_topk(self, batch: Batch, images: Images) -> tuple[Tensor, Tensor]:
        """Indices and logits [P, K] of the teacher's top tokens at the supervised positions."""
        if batch.teacher_table_BL is None:
            raise ValueError("distillation needs batches with a teacher table: set BatchSpec.teacher_block_size")
        teacher = self._teacher[0]
        mask = training_attention(batch.teacher_table_BL, self.clean_attention)
        hidden_BLD = hidden_states(teacher, batch.input_ids_BL, batch.position_ids_CBL, mask, images)
        head = teacher.get_output_embeddings()
        rows = chunk_rows(head.weight.shape[0], hidden_BLD.device)
        tops = [head(piece).float().topk(self.config.top_k) for piece in gather(hidden_BLD, batch.noisy).split(rows)]
        return torch.cat([top.indices for top in tops]), torch.cat([top.values for top in tops])

    def forward(self, batch: Batch, images: Images) -> Loss:
        config = self.config
        indices_PK, logits_PK = self.teacher_topk(batch, images)
        known_P = batch.teacher_knows_P if batch.teacher_knows_P is not None else torch.ones_like(batch.noisy.t_P)

        def distil(
            logits: Tensor, target: Tensor, noisy: Tensor, t: Tensor, indices: Tensor, teacher: Tensor, known: Tensor
        ) -> Tensor:
            ce = denoising_loss(config.noise.name, logits, target, noisy, t)
            kl = topk_distillation_tokens(logits, indices, teacher, config.direction, config.temperature)
            return config.ce_weight * ce + config.kl_weight * kl * known

        total = self.head_loss(self.body(batch, images), batch.noisy, distil, indices_PK, logits_PK, known_P)
        return Loss(total, {"distillation": total.detach()})


def _next_token_loss(logits: Tensor, target: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), target, reduction="none")
