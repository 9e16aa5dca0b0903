"""Ranks that start together read what is theirs: the weights of a plain load, and no model on the host beside them."""

import pytest
import torch

from .start_worker import starts_on
from .workers import PRELOAD


def folder_of(path, layers, hidden, tied):
    """A model of random weights in bf16, as a stage leaves them."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(0)
    config = Qwen3VLConfig(
        tie_word_embeddings=tied,
        text_config={
            "vocab_size": 4096, "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": hidden,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        },
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config).bfloat16()
    model.save_pretrained(path, max_shard_size="20MB")
    return path, 4 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.faults  # two process groups and a model of 130 MB
def test_two_ranks_hold_one_model_between_them(tmp_path):
    small, _ = folder_of(tmp_path / "small", 2, 64, tied=False)
    large, size = folder_of(tmp_path / "large", 10, 512, tied=True)
    (differing, _), (tied_differing, peaks) = starts_on(2, PRELOAD, small, large)
    assert differing == tied_differing == []
    assert size > 100e6 and sum(peaks) <= 1.2 * size, [peak / size for peak in peaks]
