"""Losses over gathered positions equal the paper's over padded rows; packed equals separate; chunked equals whole."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoProcessor

from bard_core.config.sections import NoiseConfig
from bard_core.data.batches import BatchSpec, collate, replacement_tokens
from bard_core.data.examples import attach_positions
from bard_core.data.reader import Reader
from bard_core.diffusion.losses import weighted_cross_entropy
from bard_core.lab.model import build_lab_model
from bard_core.models.attention import dense_mask, hidden_states, training_attention
from bard_core.store import artifacts
from bard_core.training.images import ImageEncoder
from bard_core.training.objectives import Autoregressive, ProgressiveBlockMerging

from .conftest import TINY_MODEL


@pytest.fixture(scope="module")
def parts(tiny_dataset):
    folder = artifacts.fetch(tiny_dataset)
    processor = AutoProcessor.from_pretrained(folder / "processor")
    model = build_lab_model(TINY_MODEL, processor, 64, seed=0).eval()
    examples = list(Reader(tiny_dataset, "train"))
    attach_positions(examples, model)
    encoder = ImageEncoder(model, processor.image_processor, True, torch.device("cpu"))
    return model, processor.tokenizer, examples, encoder


def spec_for(tokenizer, **kwargs):
    mask_id = tokenizer.convert_tokens_to_ids("<|mask|>")
    values = {
        "block_size": 4,
        "noise": NoiseConfig(),
        "mask_token_id": mask_id,
        "end_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "replacements_W": replacement_tokens(len(tokenizer), [mask_id]),
        "max_tokens_per_row": 64,
    }
    return BatchSpec(**{**values, **kwargs})


@torch.no_grad()
def loss_of(objective, encoder, batch):
    loss = objective(batch, encoder(batch.images, batch.grid_thw))
    total = float(loss.total) + float(loss.causal or 0)
    assert float(loss.samples_S.sum()) > 0
    return total


@pytest.mark.parametrize(
    "make",
    [
        Autoregressive,
        lambda m: ProgressiveBlockMerging(m, "block", "mask", 0.0),
        lambda m: ProgressiveBlockMerging(m, "causal", "mix", 0.5),
    ],
)
def test_packed_is_separate(parts, make):
    model, tokenizer, examples, encoder = parts
    objective = make(model)
    picks = [(example, 1) for example in examples[:6]]
    size = None if isinstance(objective, Autoregressive) else 4
    alone = sum(loss_of(objective, encoder, collate([pick], spec_for(tokenizer, block_size=size))) for pick in picks)
    packed = collate(picks, spec_for(tokenizer, block_size=size, max_tokens_per_row=2000))
    assert packed.input_ids_BL.shape[0] < len(picks)
    assert loss_of(objective, encoder, packed) == pytest.approx(alone, rel=1e-4)


def test_multi_turn_is_one_turn_at_a_time(parts):
    """The noisy logits of each turn do not depend on the noisy copies of the others."""
    model, tokenizer, examples, encoder = parts
    example = max(examples, key=lambda e: len(e.turns))
    assert len(example.turns) > 1
    batch = collate([(example, 0)], spec_for(tokenizer))
    images = encoder(batch.images, batch.grid_thw)
    with torch.no_grad():
        together = hidden_states(model, batch.input_ids_BL, batch.position_ids_CBL, dense_mask(batch.table_BL, "block"), images)
        clean = example.input_ids_N.numel()
        for block in batch.table_BL.block[0, clean:].unique():
            keep = torch.cat([torch.arange(clean), clean + (batch.table_BL.block[0, clean:] == block).nonzero().squeeze(-1)])
            mask = dense_mask(batch.table_BL, "block")[:, :, keep][:, :, :, keep]
            alone = hidden_states(model, batch.input_ids_BL[:, keep], batch.position_ids_CBL[:, :, keep], mask, images)
            assert torch.allclose(alone[0, clean:], together[0, keep[clean:]], atol=1e-5)


def test_multi_turn_is_the_conversation_cut_after_each_turn(parts):
    """With a causal clean stream every turn trains as if the conversation ended with it and it alone were supervised."""
    model, tokenizer, examples, encoder = parts
    example = max(examples, key=lambda e: len(e.turns))

    def noisy_hidden(example, noise_of):
        batch = collate([(example, 0)], spec_for(tokenizer))
        ids, clean = batch.input_ids_BL.clone(), example.input_ids_N.numel()
        ids[0, clean:] = noise_of(batch.table_BL.position[0, clean:])
        mask = training_attention(batch.table_BL, "causal")
        return hidden_states(model, ids, batch.position_ids_CBL, mask, encoder(batch.images, batch.grid_thw))[0, clean:]

    def noise_of(positions):
        return 40 + positions % 7

    with torch.no_grad():
        together = noisy_hidden(example, noise_of)
        place = 0
        for start, end in example.turns:
            assert example.position_ids_CN is not None
            cut = replace(
                example,
                input_ids_N=example.input_ids_N[:end],
                position_ids_CN=example.position_ids_CN[:, :end],
                turns=[(start, end)],
            )
            alone = noisy_hidden(cut, noise_of)
            assert torch.allclose(alone, together[place : place + len(alone)], atol=1e-5)
            place += len(alone)
        assert place == len(together)


def test_gathered_loss_is_the_papers(parts):
    model, tokenizer, examples, encoder = parts
    batch = collate([(example, 0) for example in examples[:4]], spec_for(tokenizer, sample_mean=True))
    images = encoder(batch.images, batch.grid_thw)
    with torch.no_grad():
        mine = float(ProgressiveBlockMerging(model, "block", "mask", 0.0)(batch, images).total)
        hidden = hidden_states(model, batch.input_ids_BL, batch.position_ids_CBL, dense_mask(batch.table_BL, "block"), images)
        logits = model.lm_head(hidden)
    where = batch.noisy
    total = 0.0
    for i, example in enumerate(examples[:4]):
        at = where.index_P[where.sample_P == i]
        targets = torch.zeros(1, logits.numel() // logits.shape[-1], dtype=torch.long)
        targets[0, at] = where.target_P[where.sample_P == i]
        t = torch.ones(targets.shape)
        t[0, at] = where.t_P[where.sample_P == i]
        loss_mask = torch.zeros_like(targets, dtype=torch.bool)
        loss_mask[0, at] = True
        response = torch.zeros_like(loss_mask)
        response[0, : sum(end - start for start, end in example.turns)] = True
        total += float(weighted_cross_entropy(logits.view(1, -1, logits.shape[-1]), targets, t, response, loss_mask))
    assert mine == pytest.approx(total, rel=1e-4)
