"""The released decoder's greedy decodes, token for token; BARD_GOLDEN_DIR points this test at another set of the same shape."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bard_core.decoding import generate

FOLDER = Path(os.environ.get("BARD_GOLDEN_DIR") or Path(__file__).parents[2] / "golden")
DECODES = json.loads((FOLDER / "decode.json").read_text())


@pytest.fixture(scope="module")
def golden_model() -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(FOLDER / "model", dtype=torch.float32).eval()


def prompt(name: str) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / "model_io.npz") as arrays:
        keys = [key for key in arrays if key.startswith(f"{name}_") and "_train_" not in key]
        return {key.removeprefix(f"{name}_"): torch.from_numpy(arrays[key]) for key in keys}


def real(ids: list[int]) -> list[int]:
    eos = DECODES["eos_token_id"]
    return ids[: ids.index(eos) + 1] if eos in ids else ids


@pytest.mark.parametrize("case", DECODES["cases"], ids=lambda c: f"{c['prompt']}-b{c['block_size']}-s{c['denoising_steps']}")
def test_golden(case: dict[str, Any], golden_model: Any) -> None:
    options: dict[str, Any] = {
        "block_size": case["block_size"],
        "denoising_steps": case["denoising_steps"],
        "strategy": case["remasking_strategy"].removeprefix("low_confidence_"),
        "confidence_threshold": case["confidence_threshold"],
        "max_new_tokens": case["max_new_tokens"],
        "mask_token_id": DECODES["mask_token_id"],
        "eos_token_id": DECODES["eos_token_id"],
    }
    steps = case["steps_per_block"]
    paper = generate(golden_model, prompt(case["prompt"]), schedule="paper", **options)
    assert paper.sequences[0].tolist() == real(case["output_ids"])
    assert list(paper.stats.steps_per_block[0]) == steps
    assert paper.stats.forwards == sum(steps) + len(steps)

    fused = generate(golden_model, prompt(case["prompt"]), **options)
    assert torch.equal(fused.sequences, paper.sequences)
    assert fused.stats.forwards <= sum(steps)
