"""A schedule's weight is what its masked share asks for, whatever the schedule: the same likelihood is bounded."""

import math

import pytest
import torch

from bard_core.diffusion.losses import denoising_tokens
from bard_core.diffusion.noise import complement, corrupt, generator_for
from bard_core.diffusion.schedules import complement_t, loss_weight, masked_share

T = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_weight_is_the_slope_over_the_masked_share(schedule):
    t = T.clone().requires_grad_()
    share = masked_share(t, schedule)
    (slope,) = torch.autograd.grad(share.sum(), t)  # -alpha'
    assert torch.allclose(loss_weight(T, schedule), slope / share.detach())
    assert share[0] < 0.02 and share[-1] > 0.98 and (share.diff() > 0).all()
    assert torch.allclose(masked_share(complement_t(T, schedule), schedule), 1 - share.detach())


def test_schedules_agree_on_the_expected_loss():
    """Any schedule's mean weight of a token, over t and its mask, is one integral; here of a loss that grows with the share."""
    t = torch.linspace(1e-6, 1, 200_001, dtype=torch.float64)

    def bound(schedule):
        share = masked_share(t, schedule)
        return float(torch.trapezoid(loss_weight(t, schedule) * share * share.square(), t))

    assert bound("linear") == pytest.approx(bound("cosine"), rel=1e-4) == pytest.approx(1 / 3, rel=1e-4)


def test_noise_and_loss_follow_the_schedule():
    target, block = torch.full((40_000,), 7), torch.arange(40_000) // 4
    given = {"name": "mask", "min_t": 0.5, "max_t": 0.5001, "mask_token_id": 9, "replacements_W": torch.arange(5)}
    noise = corrupt(target, block, **given, generator=generator_for(0, "a", 0), schedule="cosine")
    expected = 1 - math.cos(math.pi / 4)
    assert float(noise.loss_mask_R.float().mean()) == pytest.approx(expected, abs=0.01)
    other = complement(noise, target, 9, "cosine")
    assert torch.equal(other.loss_mask_R, ~noise.loss_mask_R)
    assert torch.allclose(masked_share(other.t_R, "cosine"), torch.tensor(1 - expected), atol=1e-3)
    logits = torch.randn(3, 11)
    tokens = (logits, target[:3], noise.noisy_R[:3], noise.t_R[:3])
    ratio = denoising_tokens("mask", *tokens, "cosine") / denoising_tokens("mask", *tokens)
    assert torch.allclose(ratio, torch.tensor((math.pi / 2) / math.tan(math.pi / 8) / 2), rtol=1e-3)
