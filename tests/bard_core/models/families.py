"""Tiny random models of several families, each with a prompt that its own body understands."""

from typing import Any

import torch
from torch import Tensor

MASK, EOS, IMAGE = 510, 509, 500
TEXT: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = ("qwen3", "qwen3_vl", "qwen2_5_vl", "internvl", "smolvlm")


def build(name: str) -> tuple[Any, dict[str, Tensor]]:
    """A model in eval mode, and the inputs of one prompt: text, for the image-text models with an image inside."""
    torch.manual_seed(0)
    model, visual, tokens = globals()[f"_{name}"]()
    head, tail = torch.randint(1, 490, (2, 5)).unbind(0)
    ids = torch.cat([head, torch.full((tokens,), IMAGE), tail])[None]
    return model.eval(), {"input_ids": ids, **visual}


def _qwen3() -> tuple[Any, dict[str, Tensor], int]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**TEXT)), {}, 0


def _qwen(config_class: Any, model_class: Any, vision: dict[str, Any]) -> tuple[Any, dict[str, Tensor], int]:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    common = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32, "patch_size": 8}
    config = config_class(
        text_config=TEXT | {"rope_parameters": rope}, vision_config=common | vision,
        image_token_id=IMAGE, video_token_id=501, vision_start_token_id=502, vision_end_token_id=503,
    )  # fmt: skip
    patches = {"pixel_values": torch.randn(4 * 6, 3 * 2 * 8 * 8), "image_grid_thw": torch.tensor([[1, 4, 6]])}
    return model_class(config), patches, 6


def _qwen2_5_vl() -> tuple[Any, dict[str, Tensor], int]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    return _qwen(Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, {})


def _qwen3_vl() -> tuple[Any, dict[str, Tensor], int]:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0], "depth": 2}
    return _qwen(Qwen3VLConfig, Qwen3VLForConditionalGeneration, vision)


def _internvl() -> tuple[Any, dict[str, Tensor], int]:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": [32, 32], "patch_size": [8, 8],
    }  # fmt: skip
    config = InternVLConfig(text_config=TEXT | {"model_type": "qwen3"}, vision_config=vision, image_token_id=IMAGE)
    return InternVLForConditionalGeneration(config), {"pixel_values": torch.randn(2, 3, 32, 32)}, 2 * 4


def _smolvlm() -> tuple[Any, dict[str, Tensor], int]:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = SmolVLMConfig(
        text_config=TEXT | {"model_type": "llama"}, vision_config=vision, image_token_id=IMAGE, scale_factor=2, pad_token_id=0
    )
    return SmolVLMForConditionalGeneration(config), {"pixel_values": torch.randn(1, 2, 3, 32, 32)}, 2 * 4
