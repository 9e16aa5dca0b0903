"""The lab's source model: a stock Qwen3-VL small enough to train from scratch on two cores."""

from typing import Any

import torch

from bard_core.config.sections.source import LabModelConfig


def build_lab_model(config: LabModelConfig, processor: Any, max_image_side_px: int, seed: int) -> Any:
    """A randomly initialised Qwen3-VL whose special tokens are the processor's.

    One merged visual token covers 32 x 32 pixels (patch 16, merge 2); images up to ``max_image_side_px`` a side.
    """
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = processor.tokenizer
    token = tokenizer.convert_tokens_to_ids
    half = config.head_dim // 2
    hf_config = Qwen3VLConfig(
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * (half // 4), half // 4, half // 4],
                "mrope_interleaved": True,
            },
            "max_position_embeddings": 4096,
            "initializer_range": config.hidden_size**-0.5,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": config.vision_layers,
            "hidden_size": config.vision_hidden_size,
            "intermediate_size": 2 * config.vision_hidden_size,
            "num_heads": config.vision_heads,
            "out_hidden_size": config.hidden_size,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": (max_image_side_px // 16) ** 2,
            "deepstack_visual_indexes": [],
        },
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(hf_config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.float()
