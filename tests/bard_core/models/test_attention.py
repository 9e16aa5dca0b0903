"""The two evaluations of the mask give one model: dense and sparse forwards on packed, multi-turn and complementary rows."""

import pytest
import torch

from bard_core.config.sections.noise import NoiseConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example, attach_positions
from bard_core.models import attention
from bard_core.models.attention import block_mask, dense_mask, hidden_states, training_attention

from .families import EOS, MASK, build


def batch_of(model, **options):
    """Two conversations, one with two turns, in one row that ends in padding."""
    torch.manual_seed(1)
    examples = [
        Example("a", torch.randint(1, 490, (40,)), [(10, 19), (25, 38)], [], []),
        Example("b", torch.randint(1, 490, (30,)), [(12, 30)], [], []),
        Example("c", torch.randint(1, 490, (60,)), [(5, 50)], [], []),
    ]
    attach_positions(examples, model)
    spec = BatchSpec(4, NoiseConfig(**options), MASK, EOS, 0, replacements_W=torch.arange(1, 490), max_tokens_per_row=180)
    return collate([(example, 0) for example in examples], spec)


@pytest.mark.parametrize("clean_attention", ["block", "causal"])
@pytest.mark.parametrize("complementary", [False, True])
@torch.no_grad()
def test_dense_is_sparse(clean_attention, complementary, monkeypatch):
    monkeypatch.setattr(attention, "_compiled_flex", lambda: attention.flex_attention)  # test_tiles compiles it
    model, _ = build("qwen3")
    batch = batch_of(model, complementary=complementary)
    assert batch.input_ids_BL.shape[0] == 2
    dense, sparse = (
        hidden_states(model, batch.input_ids_BL, batch.position_ids_CBL, make(batch.table_BL, clean_attention))
        for make in (dense_mask, block_mask)
    )
    real = batch.table_BL.role >= 0
    assert torch.allclose(dense[real], sparse[real], atol=1e-5)
    assert isinstance(training_attention(batch.table_BL, clean_attention), torch.Tensor)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("clean_attention", ["block", "causal"])
def test_sparse_gradients_on_the_gpu(clean_attention):
    model, _ = build("qwen3")
    model = model.cuda()
    batch = batch_of(model).to("cuda")
    grads = []
    for make in (dense_mask, training_attention):
        model.zero_grad()
        out = hidden_states(model, batch.input_ids_BL, batch.position_ids_CBL, make(batch.table_BL, clean_attention))
        out[batch.table_BL.role >= 0].square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*grads, atol=1e-4)


def test_a_switched_model_still_decodes_as_before():
    """The text layers stay switched after training; with masks of transformers' own, or none, they are the stock ones."""
    model, inputs = build("qwen3")
    ids = inputs["input_ids"].repeat(2, 1)
    padding = torch.ones_like(ids)
    padding[0, :3] = 0
    with torch.no_grad():
        before = [model(ids).logits, model(ids, attention_mask=padding).logits[:, 3:]]
        batch = batch_of(model)
        hidden_states(model, batch.input_ids_BL, batch.position_ids_CBL, dense_mask(batch.table_BL, "block"))
        after = [model(ids).logits, model(ids, attention_mask=padding).logits[:, 3:]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
