"""Losses of block diffusion and distillation, on supervised positions only (paper section 3, equations 3 to 6).

Two layers. The *token* functions give one number a position from logits [P, V] that were computed for supervised positions
alone. ``weighted_cross_entropy`` and ``generalized_kl`` are the paper's reductions over padded rows [B, L]; the training
loop reaches the same numbers from gathered positions through :func:`reduction_weights`.

Shape suffixes: B rows, L row length, P supervised positions, V vocabulary, K teacher's top tokens.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bard_core.diffusion.names import Reduction

MIN_T = 1e-3  # 1/t is clamped here: the released code lets it reach 2.6e5
MAX_FLOW_TIME = 0.9  # 1/(1-t) of the generalized KL, as the released code clamps it


def reduction_weights(loss_mask_BL: Tensor, response_mask_BL: Tensor, reduction: Reduction, num_samples: int | None) -> Tensor:
    """Weights [B, L] whose inner product with a per-token loss is the reduced loss.

    ``sample_mean``: 1 / response length / number of samples (paper eq. 4); ``token_mean``: 1 / number of supervised tokens.
    """
    weights = loss_mask_BL.float()
    if reduction == "token_mean":
        return weights / weights.sum().clamp(min=1)
    if reduction == "sample_mean":
        lengths = response_mask_BL.sum(-1, keepdim=True).clamp(min=1)
        return weights / lengths / (num_samples or loss_mask_BL.shape[0])
    raise ValueError(f"reduction must be 'sample_mean' or 'token_mean', got {reduction!r}")


def weighted_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    t: Tensor,
    response_mask: Tensor,
    loss_mask: Tensor,
    reduction: Reduction = "sample_mean",
    num_samples: int | None = None,
) -> Tensor:
    """The PBM objective: cross entropy of masked tokens, weighted by 1/t (paper eq. 4).

    Args:
        logits: [B, L, V]. targets: [B, L]. t: [B, L] noise level of each token's block, clamped to >= 1e-3.
        response_mask: [B, L] bool, the response. loss_mask: [B, L] bool, the positions that count.
        num_samples: the divisor of ``sample_mean``; None: B.

    Returns:
        A scalar.
    """
    # 1. cross entropy of every position                               [B, L]
    ce_BL = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    # 2. weight by 1/t: the lighter the noise, the rarer a masked token [B, L]
    ce_BL = ce_BL / t.clamp(min=MIN_T)
    # 3. reduce over the supervised positions
    return (ce_BL * reduction_weights(loss_mask, response_mask, reduction, num_samples)).sum()


def generalized_kl_tokens(logits_PV: Tensor, targets_P: Tensor, x_t_P: Tensor, t_P: Tensor) -> Tensor:
    """Generalized KL of the mixture path, one number a position [P] (discrete flow matching; the paper's loss for uniform noise).

    With p the model's distribution, x the target, x_t the noisy token and d = [x_t = x]:

        loss = (p(x_t) - d + (1 - d) log p(x)) * -1 / (1 - t)

    ``t`` here is the flow's time (1: clean), clamped to <= 0.9.
    """
    log_p = logits_PV.float().log_softmax(-1)
    log_p_target = log_p.gather(-1, targets_P[:, None]).squeeze(-1)
    p_noisy = log_p.gather(-1, x_t_P[:, None]).squeeze(-1).exp()
    same = (targets_P == x_t_P).float()
    return -(p_noisy - same + (1 - same) * log_p_target) / (1 - t_P.clamp(max=MAX_FLOW_TIME))


def generalized_kl(
    logits: Tensor,
    targets: Tensor,
    x_t: Tensor,
    t: Tensor,
    response_mask: Tensor,
    loss_mask: Tensor,
    reduction: Reduction = "sample_mean",
    num_samples: int | None = None,
) -> Tensor:
    """Generalized KL over padded rows; arguments as :func:`weighted_cross_entropy`, plus the noisy tokens ``x_t`` [B, L].

    ``t`` is the flow's time (1: clean). Returns a scalar.
    """
    tokens = generalized_kl_tokens(logits.flatten(0, 1), targets.flatten(), x_t.flatten(), t.flatten())
    return (tokens.view_as(targets) * reduction_weights(loss_mask, response_mask, reduction, num_samples)).sum()


def topk_distillation_tokens(
    student_PV: Tensor,
    teacher_topk_indices_PK: Tensor,
    teacher_topk_logits_PK: Tensor,
    direction: Literal["forward", "reverse"] = "forward",
    temperature: float = 1.0,
) -> Tensor:
    """Distillation from the teacher's top K tokens, one number a position [P] (paper eq. 6).

    ``forward``: cross entropy of the student under the teacher renormalised on its top K (forward KL up to the teacher's
    entropy, which has no gradient). ``reverse``: KL from the student to the teacher, both renormalised on those K tokens.
    """
    teacher = teacher_topk_logits_PK.float().div(temperature).log_softmax(-1)
    student = student_PV.float().div(temperature)
    if direction == "forward":
        log_q = student.gather(-1, teacher_topk_indices_PK) - student.logsumexp(-1, keepdim=True)
        return -(teacher.exp() * log_q).sum(-1)
    if direction == "reverse":
        log_q = student.gather(-1, teacher_topk_indices_PK).log_softmax(-1)
        return (log_q.exp() * (log_q - teacher)).sum(-1)
    raise ValueError(f"direction must be 'forward' or 'reverse', got {direction!r}")


def topk_distillation(
    student_logits: Tensor,
    teacher_topk_indices: Tensor,
    teacher_topk_logits: Tensor,
    direction: Literal["forward", "reverse"] = "forward",
    temperature: float = 1.0,
) -> Tensor:
    """Mean of :func:`topk_distillation_tokens` over positions; a scalar. Shapes: [P, V], [P, K], [P, K]."""
    tokens = topk_distillation_tokens(student_logits, teacher_topk_indices, teacher_topk_logits, direction, temperature)
    return tokens.mean() if tokens.numel() else torch.zeros((), device=student_logits.device)
