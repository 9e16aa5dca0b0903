"""Losses over gathered positions equal the paper's over padded rows; packed equals separate; chunked equals whole."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor

from bard_core.config.sections.noise import NoiseConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example, attach_positions
from bard_core.data.reader import Reader
from bard_core.diffusion.noise import Corruption, replacement_tokens
from bard_core.lab.model import build_lab_model
from bard_core.models.attention import dense_mask, hidden_states, training_attention
from bard_core.store import artifacts
from bard_core.training.images import ImageEncoder
from bard_core.training.objectives import Autoregressive, ProgressiveBlockMerging

from .conftest import TINY_MODEL
from .test_step import EOS, MASK, tiny_model


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
    total = float(loss.noisy or 0) + float(loss.clean or 0)
    assert total > 0 and float(loss.samples_S.sum()) == pytest.approx(total, rel=1e-4)
    assert total == pytest.approx(sum(objective.shares[name] * float(part) for name, part in loss.parts.items()), rel=1e-4)
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


@st.composite
def lengths(draw):
    """Answers of one to three samples, their block size, and how many copies carry the noise."""
    answers = draw(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=2), min_size=1, max_size=3))
    return answers, draw(st.sampled_from([4, 32])), draw(st.booleans())


def conversations(answers):
    """Text conversations with answers of these lengths."""
    examples = []
    for i, turns in enumerate(answers):
        spans, cursor = [], 0
        for length in turns:
            spans.append((cursor + 5, cursor + 5 + length))
            cursor += 5 + length
        ids = torch.randint(1, 490, (cursor + 1,), generator=torch.Generator().manual_seed(i))
        examples.append(Example(f"s{i}", ids, spans, [], [], torch.arange(cursor + 1)[None]))
    return examples


@settings(max_examples=12, deadline=None)
@given(lengths(), st.sampled_from(["sample_mean", "token_mean"]), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_packed_batch_is_its_samples_added_up(case, reduction, tail_weight):
    """Loss and gradients of packed samples of real lengths against one whole forward a sample and the paper's sums:
    sum over samples of (sum of w CE / t, over the padded length) / samples, w being the tail weight past an answer's end."""
    answers, block_size, complementary = case
    model, noise = tiny_model(), NoiseConfig(min_t=0.3, complementary=complementary)
    spec = BatchSpec(
        block_size, noise, MASK, EOS, 0, torch.arange(1, 490), reduction, tail_weight=tail_weight, max_tokens_per_row=1000
    )
    picks = [(example, 0) for example in conversations(answers)]
    packed = collate(picks, spec)
    objective = ProgressiveBlockMerging(model, "block", "mask", 0.0)
    divisor = len(picks) if reduction == "sample_mean" else max(packed.noisy.index_P.numel(), 1)
    loss = objective(packed, None)
    assert loss.noisy is not None
    (loss.noisy / divisor).backward()
    mine = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()

    total = torch.zeros(())
    for example, _ in picks:
        batch = collate([(example, 0)], spec)
        where, copies = batch.noisy, 2 if complementary else 1
        mask = dense_mask(batch.table_BL, "block")
        hidden = hidden_states(model, batch.input_ids_BL, batch.position_ids_CBL, mask, None)
        ce_P = F.cross_entropy(model.lm_head(hidden)[0, where.index_P], where.target_P, reduction="none")
        tail_R = torch.cat([torch.arange(-(-n // block_size) * block_size) >= n for n in (b - a for a, b in example.turns)])
        tail_P = tail_R[(where.index_P - example.input_ids_N.numel()) % len(tail_R)]
        weighted = (ce_P / where.t_P * torch.where(tail_P, tail_weight, 1.0)).sum()
        total = total + (weighted / (copies * len(tail_R)) if reduction == "sample_mean" else weighted)
    (total / divisor).backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert float(loss.noisy) == pytest.approx(float(total), rel=1e-5)
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max() + 1e-6))


@pytest.mark.parametrize(("length", "weighs"), [(2, (2 + 30 / 2) / 32), (32, 1.0), (1000, (1000 + 24 / 2) / 1024)])
@pytest.mark.parametrize("complementary", [False, True])
def test_what_a_sample_weighs(length, weighs, complementary):
    """Of blocks of 32, were every token masked: about one, however short the answer; two complementary copies share it."""
    example = Example("s", torch.arange(10, 20 + length), [(10, 10 + length)], [], [], torch.arange(10 + length)[None])
    spec = BatchSpec(32, NoiseConfig(complementary=complementary), MASK, EOS, 0, torch.arange(1, 490), "sample_mean")
    padded = -(-length // 32) * 32
    everywhere = Corruption(torch.full((padded,), MASK), torch.ones(padded), torch.ones(padded, dtype=torch.bool))
    batch = collate([(example, 0)], spec, [everywhere])
    assert float(batch.noisy.weight_P.sum()) == pytest.approx(weighs / (2 if complementary else 1), rel=1e-5)
    assert float(batch.clean.weight_P.sum()) == pytest.approx(1.0, rel=1e-5)  # the mean over the answer's own tokens
    per_token = collate([(example, 0)], replace(spec, reduction="token_mean", tail_weight=0.25), [everywhere])
    assert float(per_token.noisy.weight_P.sum()) == length + (padded - length) / 4
    with pytest.raises(ValueError, match=f"s: its corruption has {padded} tokens"):
        collate([(example, 0)], replace(spec, block_size=31), [everywhere])


def test_distillation_takes_the_mean_over_what_is_supervised():
    """Half of a sample masked: its weights still add up to one."""
    example = Example("s", torch.arange(10, 52), [(10, 42)], [], [], torch.arange(42)[None])
    spec = BatchSpec(32, NoiseConfig(), MASK, EOS, 0, torch.arange(1, 490), "sample_mean", "supervised")
    half = Corruption(torch.full((32,), MASK), torch.ones(32), torch.arange(32) < 16)
    batch = collate([(example, 0)], spec, [half])
    assert batch.noisy.index_P.numel() == 16 and float(batch.noisy.weight_P.sum()) == pytest.approx(1.0)
