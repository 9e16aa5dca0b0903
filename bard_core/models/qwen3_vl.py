"""The public Qwen3-VL architectures by number, for planning where no hub can be reached. Source: their config.json on the hub."""

import re
from typing import Any

# name: layers, hidden, intermediate, heads, tied head; vision depth, hidden, intermediate, deepstack layers
SIZES: dict[str, tuple[int, int, int, int, bool, int, int, int, list[int]]] = {
    "2B": (28, 2048, 6144, 16, True, 24, 1024, 4096, [5, 11, 17]),
    "4B": (36, 2560, 9728, 32, True, 24, 1024, 4096, [5, 11, 17]),
    "8B": (36, 4096, 12288, 32, False, 27, 1152, 4304, [8, 16, 24]),
}


PUBLIC = re.compile(r"(?:Qwen/Qwen3-VL|fudan-generative-ai/Bard-VL-B\d+-\w+)-(2B|4B|8B)-")


def architecture(model: str) -> Any | None:
    """The stock config of ``Qwen/Qwen3-VL-<size>-...`` and of the paper's release; None for any other model."""
    found = PUBLIC.match(model)
    if found is None:
        return None
    from transformers import Qwen3VLConfig

    size = found[1]
    layers, hidden, intermediate, heads, tied, depth, vision_hidden, vision_intermediate, deepstack = SIZES[size]
    return Qwen3VLConfig(
        tie_word_embeddings=tied,
        text_config={
            "vocab_size": 151936,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": depth,
            "hidden_size": vision_hidden,
            "intermediate_size": vision_intermediate,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": deepstack,
        },
    )
