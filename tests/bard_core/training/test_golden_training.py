"""Losses and gradients of the paper's released code on trained weights, met through ``collate``, the objectives and a step.

Model names, block sizes and cases come from ``expected.json``, so that another set of the same shape runs through here.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.config.sections.train import OptimizerConfig, TrainConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example, attach_positions
from bard_core.diffusion.noise import Corruption
from bard_core.models import load
from bard_core.models.attention import Patches
from bard_core.training.loop import train_step
from bard_core.training.objectives import ProgressiveBlockMerging, StageWiseDistillation
from bard_core.training.optimizer import build_optimizer
from bard_core.training.teacher import OnlineTeacher

FOLDER = Path(os.environ.get("BARD_GOLDEN_DIR") or Path(__file__).parents[2] / "golden") / "training"
if not FOLDER.is_dir():
    pytest.skip(f"{FOLDER} holds no training cases", allow_module_level=True)
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
UNCLIPPED = OptimizerConfig(lr=1e-12, vision_lr=1e-12, max_grad_norm=1e12, warmup_steps=0)


@pytest.fixture(scope="module")
def cases():
    arrays = np.load(FOLDER / "cases.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


class Case:
    """The samples of a group with a case's noise, one batch of them, and how a step of an objective went."""

    def __init__(self, cases, group, noise_key):
        samples = EXPECTED["samples"][group]
        keys = [sample["key"] for sample in samples]
        self.examples = [
            Example(
                sample["key"],
                cases[f"{sample['key']}.input_ids"].long(),
                [(start, end) for start, end in sample["turns"]],
                [],
                cases[f"{sample['key']}.image_grid_thw"].tolist(),
            )
            for sample in samples
        ]
        self.images = Patches(
            torch.cat([cases[f"{key}.pixel_values"] for key in keys]), torch.cat([cases[f"{key}.image_grid_thw"] for key in keys])
        )
        self.noise = [
            Corruption(*(cases[f"{noise_key}.{i}.{name}"] for name in ("noisy", "t", "loss_mask"))) for i in range(len(keys))
        ]
        self.noise = [Corruption(noise.noisy_R.long(), noise.t_R, noise.loss_mask_R) for noise in self.noise]

    def step(self, objective, row, **spec):
        tokens = EXPECTED["tokens"]
        batch_spec = BatchSpec(
            noise=NoiseConfig(),
            mask_token_id=tokens["<|mask|>"],
            end_token_id=tokens["<|im_end|>"],
            pad_token_id=tokens["<|endoftext|>"],
            replacements_W=torch.empty(0).long(),
            max_tokens_per_row=row,
            **spec,
        )
        attach_positions(self.examples, objective.model)
        batch = collate([(example, 0) for example in self.examples], batch_spec, self.noise)
        assert (batch.input_ids_BL.shape[0] == 1) == (row > 1000)
        weight_P = batch.noisy.weight_P / (batch.noisy.t_P if isinstance(objective, ProgressiveBlockMerging) else 1)
        divisor = len(self.examples) if batch_spec.reduction == "sample_mean" else len(weight_P)
        self.resolution = torch.finfo(torch.float32).eps * float(weight_P.sum()) / divisor
        config = TrainConfig(steps=1, batch_size=len(self.examples), precision="float32", optimizer=UNCLIPPED)
        optimizer = build_optimizer(objective.model, config.optimizer)
        return train_step(objective, optimizer, [batch], lambda *_: self.images, config, batch_spec, world=1)

    def check(self, done, model, expected):
        """1e-5 for the loss and 1e-4 for gradients, but no closer than fp32 resolves: where a model is sure, its cross entropies
        and their gradients are as small as the last bit of a probability near 1."""
        assert float(done.losses["loss"]) == pytest.approx(expected["loss"], rel=1e-5, abs=self.resolution)
        close = max(1e-4, self.resolution / expected["loss"])
        assert float(done.norm) == pytest.approx(expected["grad_norm"], rel=close)
        norms = {name: float(parameter.grad.norm()) for name, parameter in model.named_parameters()}
        assert norms == pytest.approx(expected["grad_norms"], rel=close, abs=1e-7 * expected["grad_norm"])


@pytest.mark.parametrize("row", [1, 4096], ids=["a row each", "packed"])
@pytest.mark.parametrize("name", EXPECTED["pbm"])
def test_pbm(cases, name, row):
    expected = EXPECTED["pbm"][name]
    model = load(FOLDER / expected["model"])
    case = Case(cases, name.rpartition(".")[2], f"noise.{name}")
    done = case.step(
        ProgressiveBlockMerging(model, "block", "mask", 0.0),
        row,
        block_size=expected["block_size"],
        reduction="sample_mean",
        tail_weight=0.5,
    )
    case.check(done, model, expected)
    shares = done.samples_S / len(case.examples)
    assert shares.tolist() == pytest.approx(expected["losses"], rel=1e-5, abs=case.resolution)


@pytest.mark.parametrize("row", [1, 4096], ids=["a row each", "packed"])
@pytest.mark.parametrize("name", EXPECTED["swd"])
def test_swd(cases, name, row):
    expected = EXPECTED["swd"][name]
    student, group, reduction = name.split(".")
    model = load(FOLDER / expected["student"])
    teacher = load(FOLDER / expected["teacher"])
    case = Case(cases, group, f"noise-swd.{student}.{group}")
    online = OnlineTeacher(teacher, "block", 16, lambda *_: case.images)
    config = SWDConfig(train=TrainConfig(steps=1), reduction=reduction)  # the paper's recipe is the default
    done = case.step(
        StageWiseDistillation(model, "block", online, config, 0.0),
        row,
        block_size=EXPECTED["pbm"][f"{student}.{group}"]["block_size"],
        teacher_block_size=expected["teacher_block_size"],
        reduction=reduction,
        sample_length="supervised",
        tail_weight=config.tail_weight,
    )
    case.check(done, model, expected)
