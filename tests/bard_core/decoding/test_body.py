"""The cache buffer, the attention function, and models other than Qwen3-VL."""

from typing import Any

import pytest
import torch

from bard_core.decoding import generate, generate_autoregressive
from bard_core.decoding.body import Body
from bard_core.decoding.cache import BlockCache, new_cache
from bard_core.decoding.prompt import read_prompt
from bard_core.models.block_attention import block_attention, everything_visible, masked_groups

MASK, EOS = 510, 509  # of the tiny golden model


def test_cache_writes_in_place_and_forgets_by_number() -> None:
    cache = BlockCache(layers=1, capacity=8)
    key = torch.arange(10.0).view(1, 1, 5, 2)
    kept, _ = cache.update(key, -key, 0)
    buffer = kept.untyped_storage().data_ptr()
    cache.crop(-2)
    keys, values = cache.update(100 + key[:, :, :1], key[:, :, :1], 0)
    assert keys.untyped_storage().data_ptr() == buffer
    assert keys[0, 0, :, 0].tolist() == [0, 2, 4, 100] and values[0, 0, :, 0].tolist() == [0, -2, -4, 0]
    cache.hide_before(1)
    keys, _ = cache.update(key[:, :, :1], key[:, :, :1], 0)
    assert keys[0, 0, :, 0].tolist() == [2, 4, 100, 0] and cache.get_seq_length() == 4
    with pytest.raises(ValueError, match="capacity"):
        cache.update(key, key, 0)
    with pytest.raises(ValueError, match="crop"):
        cache.crop(3)


def test_rows_are_selected() -> None:
    cache = BlockCache(layers=2, capacity=6)
    states = torch.randn(3, 2, 4, 2)
    for layer in range(2):
        cache.update(states, states, layer)
    cache.batch_select_indices(torch.tensor([1]))
    cache.crop(-1)
    keys, _ = cache.update(states[1:2, :, :1], states[1:2, :, :1], 0)
    assert torch.equal(keys, torch.cat([states[1:2, :, :3], states[1:2, :, :1]], 2))


def test_rows_go_on_behind_their_own_last_token() -> None:
    cache = BlockCache(layers=1, capacity=8)
    key = torch.arange(10.0).view(1, 1, 5, 2).expand(2, -1, -1, -1)
    cache.update(key, key, 0)
    cache.place(4, torch.tensor([[2, 3], [4, 5]]))
    keys, values = cache.update(100 + key[:, :, :2], -key[:, :, :2], 0)
    assert keys[..., 0].tolist() == [[[0, 2, 100, 102, 8, 0]], [[0, 2, 4, 6, 100, 102]]] and cache.length == 6
    assert values[1, 0, :, 0].tolist() == [0, 2, 4, 6, 0, -2]


@pytest.mark.parametrize("clean_attention", ["block", "causal"])
@torch.inference_mode()
def test_unequal_rows_are_the_rows_alone(clean_attention: Any, model: Any, mixed: Any) -> None:
    """Each row keeps some of the block it wrote, and goes on from there: 3, 4 and 2 tokens."""
    batch, alone = (read_prompt(model, inputs) for inputs in (mixed[0], mixed[1][0]))
    width, n = batch.input_ids_BL.shape[1], 4
    tokens = torch.randint(0, 480, (3, 2 * n), generator=torch.Generator().manual_seed(1))
    together = Body(model, new_cache(model, width + 4 * n), clean_attention)
    together.prefill(batch, n)
    together.look_past(batch.pads)
    together(tokens[:, :n], batch.next_position_B[:, None] + torch.arange(n), clean=n)
    kept = [width + 3, width + 4, width + 2]
    positions = batch.next_position_B[:, None] + torch.tensor(kept)[:, None] - width + torch.arange(2 * n)
    got = together(tokens, positions, n, kept)

    single = Body(model, new_cache(model, width + 4 * n), clean_attention)
    single.prefill(alone, n)
    single.look_past(alone.pads)
    single(tokens[:1, :n], alone.next_position_B[:, None] + torch.arange(n), clean=n)
    expected = single(tokens[:1], positions[:1], n, [alone.input_ids_BL.shape[1] + 3])
    assert torch.allclose(got[:1], expected, atol=1e-5)


def test_split_attention_is_the_two_by_two_mask() -> None:
    n, past, heads = 3, 5, 4
    query, keys = torch.randn(2, heads, 2 * n, 8), torch.randn(2, 2, past + 2 * n, 8)
    values = torch.randn_like(keys)
    mask = torch.ones(1, 1, 2 * n, past + 2 * n, dtype=torch.bool)
    mask[..., :n, -n:] = False
    split, _ = block_attention(query, keys, values, everything_visible(query.device), None, n)
    masked, _ = block_attention(query, keys, values, mask, None, 0)
    assert torch.allclose(split, masked, atol=1e-6)


@pytest.mark.parametrize(("queries", "mask_rows"), [(3, 1), (3, 3), (9, 9)])
def test_masked_groups_are_grouped_attention(queries: int, mask_rows: int) -> None:
    query, key, value = torch.randn(2, 4, queries, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = torch.rand(2, 1, mask_rows, 9) < 0.5
    mask[..., 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    assert torch.allclose(masked_groups(query, key, value, mask, None), expected, atol=1e-6)


def tiny(name: str) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen3Config, Qwen3ForCausalLM

    text = {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    }  # fmt: skip
    torch.manual_seed(0)
    if name == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**text, initializer_range=0.3)).eval()
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32, "patch_size": 8}
    special = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}
    config = Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": rope, "initializer_range": 0.3}, vision_config=vision, **special
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5_vl"])
def test_other_models_decode(name: str, prompts: Any) -> None:
    other = tiny(name)
    inputs = prompts["text"] if name == "qwen3" else prompts["image"]
    options: dict[str, Any] = {"max_new_tokens": 12, "mask_token_id": MASK, "eos_token_id": EOS}
    fused, paper = (
        generate(other, inputs, block_size=4, schedule=s, confidence_threshold=0.5, **options) for s in ("fused", "paper")
    )
    assert torch.equal(fused.sequences, paper.sequences) and fused.stats.forwards < paper.stats.forwards
    drafted = generate(other, inputs, block_size=4, strategy="self_speculative", clean_attention="causal", **options)
    assert torch.equal(drafted.sequences, generate_autoregressive(other, inputs, **options).sequences)


def test_models_whose_state_cannot_be_rolled_back_are_refused() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8,
        use_sliding_window=True, sliding_window=4, max_window_layers=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="sliding_attention"):
        new_cache(Qwen3ForCausalLM(config), 8)
