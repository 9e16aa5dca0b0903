"""Masks exactly and losses to 1e-5 as the paper's code computed them."""

import json
import re

import numpy as np
import pytest
import torch

from bard_core.diffusion.losses import denoising_tokens, topk_distillation_tokens


def test_masks(golden_dir, training_mask):
    cases = np.load(golden_dir / "masks.npz")
    assert cases.files
    for name in cases.files:
        prefix, response, block, total = map(int, re.findall(r"\d+", name))
        assert np.array_equal(training_mask(prefix, response, block, total).numpy(), cases[name]), name


@pytest.fixture(scope="module")
def losses(golden_dir):
    arrays = np.load(golden_dir / "losses.npz")
    inputs = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return inputs, json.loads((golden_dir / "losses.json").read_text())


def token_losses(x, noise, t):
    """Token losses [B, L] of padded rows, zero where there is none."""
    flat = denoising_tokens(noise, x["logits"].flatten(0, 1), x["labels"].flatten(), x["x_t"].flatten(), t.flatten())
    return flat.view_as(t) * x["loss_mask"]


def sample_mean(tokens_BL, x):
    return float((tokens_BL.sum(-1) / x["response_mask"].sum(-1)).mean())


def test_weighted_cross_entropy(losses):
    x, expected = losses
    tokens_BL = token_losses(x, "mask", x["t"])
    assert sample_mean(tokens_BL, x) == pytest.approx(expected["weighted_ce_sample_mean"], abs=1e-5)
    assert float(tokens_BL.sum() / x["loss_mask"].sum()) == pytest.approx(expected["weighted_ce_token_mean"], abs=1e-5)


def test_generalized_kl(losses):
    x, expected = losses
    tokens_BL = token_losses(x, "uniform", 1 - x["t"])  # its t is the flow's time, ours the noise level
    assert sample_mean(tokens_BL, x) == pytest.approx(expected["generalized_kl_sample_mean_t_clamped_0_9"], abs=1e-5)


@pytest.mark.parametrize(
    ("key", "direction", "temperature"),
    [("forward-kl", "forward", 1.0), ("reverse-kl", "reverse", 1.0), ("forward-kl-T2", "forward", 2.0)],
)
def test_topk_distillation(losses, key, direction, temperature):
    x, expected = losses
    top = x["teacher_topk_indices"], x["teacher_topk_logits"]
    loss = topk_distillation_tokens(x["student_logits"], *top, direction, temperature).mean()
    assert float(loss) == pytest.approx(expected["topk_kd"][key], abs=1e-5)
