"""Folders of the paper's release (``model_type: bard_vl``), read as what they are: stock Qwen3-VL under other names.

The tensors have the stock names already, so only ``config.json`` is translated and every weight stays as it is. What the release
keeps in its code is recorded: the mask token's id, and that blocks of a prompt count from its first token, since only a
conversation's last turn was trained. The block size stands in a folder's name alone, as in ``Bard-VL-B4-Mask-2B-Instruct``.
"""

from pathlib import Path
from typing import Any

from bard_core.config.references import block_size_of

MODEL_TYPE = "bard_vl"
MASK_TOKEN_ID = 151671


def read_config(path_or_id: str | Path, revision: str | None = None) -> Any:
    """The transformers config of a folder or hub id, a released one translated.

    Raises:
        OSError, ValueError: nothing to read there, or an unknown model type (both from transformers).
    """
    from transformers import AutoConfig, PreTrainedConfig, Qwen3VLConfig

    found, _ = PreTrainedConfig.get_config_dict(path_or_id, revision=revision)
    if found.get("model_type") != MODEL_TYPE:
        return AutoConfig.from_pretrained(path_or_id, revision=revision)
    return Qwen3VLConfig.from_dict(stock_config(found, str(path_or_id)))


def stock_config(config: dict[str, Any], name: str = "") -> dict[str, Any]:
    """The content of a ``config.json``; a released one as stock transformers would write it. ``name``: of its folder."""
    if config.get("model_type") != MODEL_TYPE:
        return config
    from transformers import Qwen3VLConfig

    parts = {
        part: {**config[part], "model_type": kind.model_type}
        for part, kind in Qwen3VLConfig.sub_configs.items()
        if isinstance(config.get(part), dict)
    }
    has_mask = config["text_config"]["vocab_size"] > MASK_TOKEN_ID
    settings = {
        "block_size": block_size_of(name) or 1,
        "mask_token_id": MASK_TOKEN_ID if has_mask else None,
        "clean_attention": "block",
        "prefix_blocks": "uniform",
    }
    stock = {"model_type": Qwen3VLConfig.model_type, "architectures": ["Qwen3VLForConditionalGeneration"]}
    return {**config, **parts, **stock, "bard": {**settings, **config.get("bard", {})}}
