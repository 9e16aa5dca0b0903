"""One switch for every family: what a model is trained to see is what it sees when it decodes with a cache."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bard_core.config.sections.noise import NoiseConfig
from bard_core.data.batch import Batch
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example, attach_positions
from bard_core.decoding import generate, generate_autoregressive
from bard_core.decoding.body import Body
from bard_core.decoding.cache import new_cache
from bard_core.decoding.prompt import read_prompt
from bard_core.models import BardSettings, bard_settings, load, record_settings
from bard_core.models.attention import dense_mask, encode_images, hidden_states
from bard_core.models.vlm import add_mask_token, embedding_rows, merger_parameters, reserved_ids, vision_tower

from .families import EOS, FAMILIES, IMAGE, MASK, TEXT, build

BLOCK = 4


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: Any) -> tuple[Any, dict[str, Tensor]]:
    return build(request.param)


def training_batch(model: Any, inputs: dict[str, Tensor], response: Tensor) -> Batch:
    """The prompt and a response of the training data, laid out with its noisy copy."""
    ids = torch.cat([inputs["input_ids"][0], response])
    grid = inputs["image_grid_thw"].tolist() if "image_grid_thw" in inputs else []
    example = Example("e", ids, [(inputs["input_ids"].shape[1], len(ids))], [], grid)
    attach_positions([example], model)
    spec = BatchSpec(BLOCK, NoiseConfig(), MASK, EOS, 0, replacements_W=torch.arange(1, 490))
    return collate([(example, 0)], spec)


@pytest.mark.parametrize("clean_attention", ["block", "causal"])
@torch.no_grad()
def test_training_logits_are_decoding_logits(family, clean_attention):
    model, inputs = family
    prompt_len, response = inputs["input_ids"].shape[1], torch.arange(20, 30)  # two and a half blocks
    batch = training_batch(model, inputs, response)
    images = None
    if "pixel_values" in inputs:
        images = encode_images(model, inputs["pixel_values"], inputs.get("image_grid_thw"))
    mask = dense_mask(batch.table_BL, clean_attention)
    trained = model.lm_head(hidden_states(model, batch.input_ids_BL, batch.position_ids_CBL, mask, images))[0]

    prompt = read_prompt(model, inputs)
    noisy, padded = batch.input_ids_BL[0, prompt_len + len(response) :], torch.cat([response, torch.full((2,), EOS)])
    body = Body(model, new_cache(model, prompt_len + len(noisy)), clean_attention)
    body.prefill(prompt, BLOCK)
    for start in range(0, len(noisy), BLOCK):
        positions = prompt.next_position_B[:, None] + torch.arange(start, start + BLOCK)
        decoded = body.logits(body(noisy[None, start : start + BLOCK], positions))[0]
        offset = prompt_len + len(response) + start
        assert torch.allclose(trained[offset : offset + BLOCK], decoded, atol=2e-5)
        body.cache.crop(-BLOCK)  # then the clean block takes the noisy one's place
        body(padded[None, start : start + BLOCK], positions, clean=BLOCK)


def test_images_reach_the_response(family):
    model, inputs = family
    if "pixel_values" not in inputs:
        return
    batch = training_batch(model, inputs, torch.arange(20, 30))
    mask = dense_mask(batch.table_BL, "block")
    with torch.no_grad():
        one, two = (
            hidden_states(
                model,
                batch.input_ids_BL,
                batch.position_ids_CBL,
                mask,
                encode_images(model, scale * inputs["pixel_values"], inputs.get("image_grid_thw")),
            )
            for scale in (1.0, -1.0)
        )
    assert not torch.allclose(one[0, -1], two[0, -1], atol=1e-3)
    tower, merger = vision_tower(model), merger_parameters(model)
    assert tower is not None and merger
    assert {id(p) for p in merger}.isdisjoint({id(p) for p in model.get_decoder().parameters()})


def test_decodes_in_blocks_and_one_by_one(family):
    model, inputs = family
    options: dict[str, Any] = {"max_new_tokens": 12, "mask_token_id": MASK, "eos_token_id": EOS}
    drafted = generate(model, inputs, block_size=BLOCK, strategy="self_speculative", clean_attention="causal", **options)
    assert torch.equal(drafted.sequences, generate_autoregressive(model, inputs, **options).sequences)


def test_settings_travel_with_the_model(family, tmp_path):
    model, _ = family
    record_settings(model, BardSettings(8, MASK, "causal"))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert bard_settings(loaded) == BardSettings(8, MASK, "causal")
    assert bard_settings(load(tmp_path, block_size=4)).block_size == 4
    with pytest.raises(ValueError, match="outside the embedding"):
        record_settings(loaded, BardSettings(8, embedding_rows(loaded)))
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def tokenizer_of(words: int) -> Any:
    """A tokenizer that knows ``words`` words and the marks of images."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, "w0")))
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    return tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("words", [100, 511])
def test_mask_token_finds_or_makes_room(tied, words, tmp_path):
    """100 words leave the model's 512 rows spare; 511 and an end token fill them, so that they grow by one."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**TEXT, tie_word_embeddings=tied)).eval()
    tokenizer = tokenizer_of(words)
    ids = torch.arange(1, 90)[None]
    with torch.no_grad():
        before = model(ids).logits
        mask_id = add_mask_token(model, tokenizer)
        assert mask_id == words + 1 and embedding_rows(model) == max(512, words + 2) == model.config.get_text_config().vocab_size
        known = [i for i in range(512) if i != mask_id]
        assert torch.equal(model(ids).logits[..., known], before[..., known])
        rows = model.get_input_embeddings().weight
        assert torch.allclose(rows[mask_id], rows[:mask_id].mean(0), atol=1e-6)
    assert (model.lm_head.weight is rows) == tied
    assert add_mask_token(model, tokenizer) == mask_id  # a second time changes nothing
    record_settings(model, BardSettings(4, mask_id))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, rows)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert {mask_id, tokenizer.eos_token_id} <= set(reserved_ids(loaded, tokenizer))


def test_images_marks_are_never_drawn(family):
    model, inputs = family
    if "pixel_values" in inputs:
        assert IMAGE in reserved_ids(model, tokenizer_of(10))


def test_models_without_full_attention_are_refused(tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**TEXT, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sliding_attention"):
        load(tmp_path)


@torch.inference_mode()
def test_a_long_video_does_not_move_the_answer() -> None:
    """Qwen2.5-VL places frames by their seconds, past the text behind them; training and ``generate`` go on from the text."""
    model, _ = build("qwen2_5_vl")
    grid, ids = torch.tensor([[4, 4, 4]]), torch.tensor([[11, 12, *[501] * 16, 13, 14, 15]])
    types = 2 * (ids == 501).int()
    inputs = {
        "input_ids": ids, "mm_token_type_ids": types, "video_grid_thw": grid, "second_per_grid_ts": [8.0],
        "pixel_values_videos": torch.randn(64, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0)),
    }  # fmt: skip
    answered, answered_types = (torch.cat([one, torch.zeros(1, 3).to(one) + fill], 1) for one, fill in ((ids, 20), (types, 0)))
    trained, _ = model.model.get_rope_index(
        answered, mm_token_type_ids=answered_types, video_grid_thw=grid, second_per_grid_ts=[8.0], attention_mask=None
    )
    width = ids.shape[1]
    assert trained[..., :width].max() >= trained[0, 0, width]  # or the video would prove nothing
    assert read_prompt(model, inputs).next_position_B.tolist() == trained[0, :, width].tolist()
    common: dict[str, Any] = {"max_new_tokens": 12, "mask_token_id": 510, "eos_token_id": []}
    drafted = generate(model, inputs, block_size=4, strategy="self_speculative", clean_attention="causal", **common)
    assert torch.equal(drafted.sequences, generate_autoregressive(model, inputs, **common).sequences)
