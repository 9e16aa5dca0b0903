"""Folders of the paper's release: ``config.json`` as its ``save_pretrained`` writes it with transformers 4.57."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from bard_core.decoding import generate
from bard_core.lab.processor import build_lab_processor
from bard_core.models import BardSettings, bard_settings, load
from bard_core.models.convert import adopt
from bard_core.models.released import MASK_TOKEN_ID
from bard_core.store import artifacts
from bard_core.training.checkpoints.consolidate import consolidate

NAME = "Bard-VL-B4-Mask-2B-Instruct"


def released_config(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["BardVLForConditionalGeneration"], "dtype": "bfloat16", "image_token_id": 5, "model_type": "bard_vl",
        "text_config": {
            "attention_bias": False, "attention_dropout": 0.0, "dtype": "bfloat16", "head_dim": 8, "hidden_act": "silu",
            "hidden_size": 16, "initializer_range": 0.3, "intermediate_size": 16, "max_position_embeddings": 4096,
            "model_type": "bard_vl_text", "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [2, 1, 1], "rope_type": "default"},
            "rope_theta": 10000.0, "tie_word_embeddings": True, "use_cache": True, "vocab_size": vocabulary,
        },
        "tie_word_embeddings": True, "transformers_version": "4.57.3", "video_token_id": 6,
        "vision_config": {
            "deepstack_visual_indexes": [0], "depth": 1, "dtype": "bfloat16", "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 16, "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 16, "model_type": "bard_vl",
            "num_heads": 1, "num_position_embeddings": 16, "out_hidden_size": 16, "patch_size": 16, "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": 4, "vision_start_token_id": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A stock model of that architecture in bfloat16, as the release's weights are, loaded from a stock folder."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    plain = released_config(MASK_TOKEN_ID + 9)
    for part in (plain, plain["text_config"], plain["vision_config"]):
        part.pop("model_type")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("stock")
    Qwen3VLForConditionalGeneration(Qwen3VLConfig(**plain)).to(torch.bfloat16).save_pretrained(folder)
    return Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype="auto").eval()


@pytest.fixture(scope="module")
def folder(stock: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / NAME
    stock.save_pretrained(folder)
    build_lab_processor().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(released_config(MASK_TOKEN_ID + 9)))
    return folder


def same_weights(one: Any, other: Any) -> bool:
    state, expected = one.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def test_it_loads_and_decodes(stock: Any, folder: Path) -> None:
    """Once under the stock name, once under theirs: the same weights and the same tokens, the block size from its name."""
    loaded = load(folder, dtype="auto")
    assert same_weights(loaded, stock) and type(loaded) is type(stock)
    assert bard_settings(loaded) == BardSettings(4, MASK_TOKEN_ID, prefix_blocks="uniform")
    assert bard_settings(load(folder, block_size=8)).block_size == 8
    ids = {"input_ids": torch.arange(10, 22)[None]}
    given: dict[str, Any] = {"block_size": 4, "mask_token_id": MASK_TOKEN_ID, "max_new_tokens": 12, "eos_token_id": []}
    decoded = generate(loaded, ids, max_new_tokens=12, eos_token_id=[])
    assert torch.equal(decoded.sequences, generate(stock, ids, **given).sequences)
    assert load(folder).config.text_config.rope_parameters["mrope_section"] == [2, 1, 1]


def test_a_smaller_vocabulary_has_no_mask_token_yet(folder: Path, tmp_path: Path) -> None:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    plain = released_config(400)
    for part in (plain["text_config"], plain["vision_config"], plain):
        part.pop("model_type")
    Qwen3VLForConditionalGeneration(Qwen3VLConfig(**plain)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(released_config(400)))
    assert bard_settings(load(tmp_path)) == BardSettings(1, None)
    assert bard_settings(load(tmp_path, mask_token_id=7)).mask_token_id == 7


def test_it_is_adopted_as_it_is(stock: Any, folder: Path, tmp_path: Path) -> None:
    """The dataset's processor has a mask token of its own name and id; the model's is kept, and every weight."""
    processor = tmp_path / "processor"
    build_lab_processor().save_pretrained(processor)
    adopted = load(adopt(str(folder), None, processor, tmp_path / "adopted"), dtype="auto")
    assert same_weights(adopted, stock)
    assert bard_settings(adopted) == BardSettings(4, MASK_TOKEN_ID, prefix_blocks="uniform")
    assert json.loads((tmp_path / "adopted" / "config.json").read_text())["model_type"] == "qwen3_vl"


def test_the_mask_token_that_a_tokenizer_has_is_kept(stock: Any, tmp_path: Path) -> None:
    """A stock base whose own tokenizer has one: its row was trained, or will be, and is not made anew."""
    source = tmp_path / "base"
    stock.save_pretrained(source)
    processor = build_lab_processor()
    processor.save_pretrained(source)
    adopted = load(adopt(str(source), None, source, tmp_path / "adopted"), dtype="auto")
    assert same_weights(adopted, stock)
    assert bard_settings(adopted).mask_token_id == processor.tokenizer.mask_token_id


def test_what_is_trained_from_it_exports(stock: Any, folder: Path, tmp_path: Path) -> None:
    """Consolidation straight from their folder: fp32 masters in, a stock bfloat16 folder of half the bytes out."""
    from transformers import AutoModelForImageTextToText

    trained = {name: tensor.float() + 0.01 for name, tensor in stock.state_dict().items()}
    dcp.save({"model": trained}, checkpoint_id=str(tmp_path / "staging"), no_dist=True)
    checkpoint = tmp_path / "step-000003"
    artifacts.commit_directory(tmp_path / "staging", str(checkpoint), kind="checkpoint", step=3, config_digest="c" * 64)
    recorded = {"block_size": 8, "clean_attention": "block"}
    out = consolidate(checkpoint, tmp_path / "half", folder, dtype=torch.bfloat16, bard=recorded)
    full = consolidate(checkpoint, tmp_path / "full", folder, bard=recorded)
    size = {one: sum(path.stat().st_size for path in one.glob("*.safetensors")) for one in (out, full)}
    assert size[out] == pytest.approx(size[full] / 2, rel=0.01)
    model = AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(tensor, trained[name].to(torch.bfloat16)) for name, tensor in model.state_dict().items())
    settings = bard_settings(load(out))
    assert (settings.block_size, settings.mask_token_id, settings.prefix_blocks) == (8, MASK_TOKEN_ID, "turns")


def test_a_plan_counts_it(folder: Path) -> None:
    from bard_core.models.released import read_config
    from bard_core.models.vlm import empty_model

    meta = empty_model(read_config(folder))
    assert meta.config.model_type == "qwen3_vl" and meta.get_input_embeddings().weight.shape == (MASK_TOKEN_ID + 9, 16)
