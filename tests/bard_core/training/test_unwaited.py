"""A step never waits for its device: it runs on the meta device, which has no values to give, so whoever asks for one fails."""

import os
from pathlib import Path

import pytest
import torch

from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.config.sections.train import TrainConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example, attach_positions
from bard_core.diffusion.tiles import block_mask
from bard_core.models import load
from bard_core.models.attention import Patches, dense_mask, hidden_states
from bard_core.models.vlm import outline
from bard_core.training.loop import train_step
from bard_core.training.objectives import ProgressiveBlockMerging, StageWiseDistillation
from bard_core.training.teacher import OnlineTeacher

from .conftest import tiny_train

SOURCE = Path(os.environ.get("BARD_GOLDEN_DIR") or Path(__file__).parents[2] / "golden") / "model"
IMAGE, GRID = 500, [1, 4, 8]  # 8 visual tokens after merging
SPEC = BatchSpec(4, NoiseConfig(), 510, 509, 0, torch.arange(1, 490), teacher_block_size=4, image_token_id=IMAGE)


def batch_of(model, samples=2, images=1):
    torch.manual_seed(1)
    examples = []
    for number in range(samples):
        ids = torch.randint(1, 490, (40 + number,))
        ids[4 : 4 + 8 * images] = IMAGE
        examples.append(Example(f"s{number}", ids, [(30, 40 + number)], [b""] * images, [GRID] * images))
    attach_positions(examples, model)
    batch = collate([(example, 0) for example in examples], SPEC)
    grids = torch.tensor(batch.grid_thw)
    return batch, Patches(torch.randn(int(grids.prod(-1).sum()), 3 * 2 * 8 * 8), grids)


def test_known_places_change_no_bit():
    model = load(SOURCE)
    batch, images = batch_of(model)
    assert batch.image_at_T.numel() == 16
    results = []
    for where in (None, batch.image_at_T):
        model.zero_grad()
        mask = dense_mask(batch.table_BL, "block")
        hidden = hidden_states(model, batch.input_ids_BL, batch.position_ids_CBL, mask, images, where)
        hidden.square().sum().backward()
        results.append([hidden, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 90
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("distil", [False, True])
def test_a_step_asks_the_device_for_nothing(distil, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which knows no meta device
    model, meta = outline(SOURCE), torch.device("meta")
    batch, images = batch_of(model)
    sent = Patches(images.values.to(meta), images.grid_thw)

    def encoder(*_):
        return sent

    config = SWDConfig(train=tiny_train(), students=())
    if distil:
        teacher = OnlineTeacher(outline(SOURCE), "block", 4, encoder)
        objective = StageWiseDistillation(model, "block", teacher, config, 0.0)
    else:
        objective = ProgressiveBlockMerging(model, "causal", "mask", 0.5)
    optimizer = torch.optim.SGD(model.parameters())
    train = TrainConfig(steps=1, batch_size=4, accumulation=2, precision="float32")
    done = train_step(objective, optimizer, [batch.to(meta), batch.to(meta)], encoder, train, SPEC, world=1)
    assert done.losses["loss"].is_meta and model.model.visual.patch_embed.proj.weight.grad.is_meta
    block_mask(batch.table_BL.map(lambda tensor: tensor.to(meta)), "block")
    with pytest.raises((RuntimeError, NotImplementedError)):  # the stock code asks
        hidden_states(model, batch.input_ids_BL.to(meta), batch.position_ids_CBL.to(meta), None, sent)
