"""Masks exactly and losses to 1e-5 as the paper's code computed them."""

import json
import re

import numpy as np
import pytest
import torch

from bard_core.diffusion.layout import training_mask
from bard_core.diffusion.losses import generalized_kl, topk_distillation, weighted_cross_entropy


def test_masks(golden_dir):
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


@pytest.mark.parametrize("reduction", ["sample_mean", "token_mean"])
def test_weighted_cross_entropy(losses, reduction):
    x, expected = losses
    loss = weighted_cross_entropy(x["logits"], x["labels"], x["t"], x["response_mask"], x["loss_mask"], reduction)
    assert float(loss) == pytest.approx(expected[f"weighted_ce_{reduction}"], abs=1e-5)


def test_generalized_kl(losses):
    x, expected = losses
    loss = generalized_kl(x["logits"], x["labels"], x["x_t"], x["t"], x["response_mask"], x["loss_mask"])
    assert float(loss) == pytest.approx(expected["generalized_kl_sample_mean_t_clamped_0_9"], abs=1e-5)


@pytest.mark.parametrize(
    ("key", "direction", "temperature"),
    [("forward-kl", "forward", 1.0), ("reverse-kl", "reverse", 1.0), ("forward-kl-T2", "forward", 2.0)],
)
def test_topk_distillation(losses, key, direction, temperature):
    x, expected = losses
    loss = topk_distillation(x["student_logits"], x["teacher_topk_indices"], x["teacher_topk_logits"], direction, temperature)
    assert float(loss) == pytest.approx(expected["topk_kd"][key], abs=1e-5)
