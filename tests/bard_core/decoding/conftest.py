"""The golden tiny model and its prompts; BARD_GOLDEN_DIR points the same tests at another set."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(os.environ.get("BARD_GOLDEN_DIR") or Path(__file__).parents[2] / "golden")
DECODES = json.loads((GOLDEN / "decode.json").read_text())
MASK, EOS = DECODES["mask_token_id"], DECODES["eos_token_id"]


@pytest.fixture(scope="session")
def model() -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(GOLDEN / "model", dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def prompts() -> dict[str, dict[str, torch.Tensor]]:
    """Inputs of every golden prompt by name."""
    with np.load(GOLDEN / "model_io.npz") as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays if "_train_" not in name}
    names = {case["prompt"] for case in DECODES["cases"]}
    return {n: {k.removeprefix(f"{n}_"): v for k, v in tensors.items() if k.startswith(f"{n}_")} for n in names}


@pytest.fixture(scope="session")
def mixed(prompts: dict[str, dict[str, torch.Tensor]], model: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
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
