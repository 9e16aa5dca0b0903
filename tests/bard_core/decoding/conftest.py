"""The tiny golden model and its prompts, as a small real Qwen3-VL to decode with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="session")
def model() -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(FOLDER / "model", dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def prompts() -> dict[str, dict[str, torch.Tensor]]:
    """Inputs of the prompts "text" and "image"."""
    with np.load(FOLDER / "model_io.npz") as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays if "_train_" not in name}
    return {n: {k.removeprefix(f"{n}_"): v for k, v in tensors.items() if k.startswith(f"{n}_")} for n in ("text", "image")}


@pytest.fixture(scope="session")
def mixed(prompts: dict[str, dict[str, torch.Tensor]]) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Three prompts of unequal lengths (one with an image) as a right-padded batch, and one by one."""
    text, image = prompts["text"], prompts["image"]
    rows = [text["input_ids"][0], image["input_ids"][0], text["input_ids"][0, :3]]
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    mask = torch.stack([(torch.arange(width) < len(row)).long() for row in rows])
    visual = {name: value for name, value in image.items() if name != "input_ids"}
    single = [{"input_ids": row[None]} for row in rows]
    single[1] |= visual
    return {"input_ids": ids, "attention_mask": mask, **visual}, single
