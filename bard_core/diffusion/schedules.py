"""Schedules of mask noise: which share of a block is masked at noise level t, and what its tokens then weigh in the loss.

With alpha(t) the share that stays, the negative ELBO of masked diffusion weighs the cross entropy of a masked token by

    -alpha'(t) / (1 - alpha(t))          (Sahoo et al. 2024, arXiv 2406.07524, eq. 10; Shi et al. 2024, arXiv 2406.04329, eq. 5)

for t uniform in [0, 1], so any schedule bounds the same likelihood. ``t`` keeps to its bounds whatever the schedule.

    linear    alpha = 1 - t              masked share t                   weight 1 / t (the paper's eq. 4)
    cosine    alpha = cos(pi t / 2)      masked share 1 - cos(pi t / 2)   weight (pi / 2) / tan(pi t / 4)

The cosine is MDLM's; its masked share is also that of the paper's mixed noise.
"""

import math

import torch
from torch import Tensor

from bard_core.diffusion.names import NoiseSchedule


def masked_share(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """1 - alpha(t)."""
    if schedule == "linear":
        return t
    return 2 * torch.sin(t * (math.pi / 4)) ** 2  # 1 - cos(pi t / 2), without its cancellation near 0


def loss_weight(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """-alpha'(t) / (1 - alpha(t)), for t above 0."""
    if schedule == "linear":
        return 1 / t
    return (math.pi / 2) / torch.tan(t * (math.pi / 4))


def complement_t(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The level at which the share is masked that is shown at ``t``."""
    if schedule == "linear":
        return 1 - t
    return torch.acos(masked_share(t, schedule)) * (2 / math.pi)
