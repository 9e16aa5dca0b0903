"""Losses of block diffusion and distillation: one number a supervised position (paper section 3, equations 3 to 6).

Logits [P, V] are computed for supervised positions alone. How positions add up to a loss is said by the weights that
``data.batches`` gives them.

Shape suffixes: P supervised positions, V vocabulary, K teacher's top tokens.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bard_core.diffusion.names import NoiseName, NoiseSchedule
from bard_core.diffusion.schedules import loss_weight

MIN_T = 1e-3  # 1/t is clamped here: the released code lets it reach 2.6e5
MAX_FLOW_TIME = 0.9  # 1/(1-t) of the generalized KL, as the released code clamps it


def cross_entropy_tokens(logits_PV: Tensor, targets_P: Tensor) -> Tensor:
    """Plain cross entropy [P], in fp32."""
    return F.cross_entropy(logits_PV.float(), targets_P, reduction="none")


def denoising_tokens(
    noise: NoiseName,
    logits_PV: Tensor,
    targets_P: Tensor,
    noisy_P: Tensor,
    t_P: Tensor,
    schedule: NoiseSchedule = "linear",
) -> Tensor:
    """Token losses [P] of a noise: for mask cross entropy weighed as the schedule says, which is 1/t for the linear one (paper
    eq. 4; ``diffusion.schedules``); generalized KL for uniform; cross entropy for edit and mix.

    ``t_P``: the noise level of each token's block; it is clamped.
    """
    if noise == "uniform":
        return generalized_kl_tokens(logits_PV, targets_P, noisy_P, 1 - t_P)
    ce_P = cross_entropy_tokens(logits_PV, targets_P)
    if noise != "mask":
        return ce_P
    level_P = t_P.clamp(min=MIN_T)
    return ce_P / level_P if schedule == "linear" else ce_P * loss_weight(level_P, schedule)


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


def teacher_entropy_tokens(teacher_topk_logits_PK: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of the teacher renormalised on its top K, one number a position [P]: what the forward loss cannot go below."""
    return torch.special.entr(teacher_topk_logits_PK.float().div(temperature).softmax(-1)).sum(-1)
