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
    ended = DECODES["eos_token_id"] in case["output_ids"]
    assert paper.stats.forwards == sum(steps) + len(steps) - ended  # the block in which an answer ends is not committed

    fused = generate(golden_model, prompt(case["prompt"]), **options)
    assert torch.equal(fused.sequences, paper.sequences)
    assert fused.stats.forwards <= sum(steps)


TRAINED = (
    json.loads((FOLDER / "decode_trained.json").read_text()) if (FOLDER / "decode_trained.json").is_file() else {"cases": []}
)


@pytest.fixture(scope="module")
def trained_models() -> dict[str, Any]:
    from bard_core.models import load

    return {name: load(FOLDER / "training" / name) for name in {case["model"] for case in TRAINED["cases"]}}


@pytest.fixture(scope="module")
def samples() -> dict[str, dict[str, torch.Tensor]]:
    """The prompts of the training cases: everything before the answer."""
    found = json.loads((FOLDER / "training" / "expected.json").read_text())["samples"]
    with np.load(FOLDER / "training" / "cases.npz") as arrays:
        return {
            sample["key"]: {
                "input_ids": torch.from_numpy(arrays[f"{sample['key']}.input_ids"])[None, : sample["turns"][0][0]].long(),
                **{name: torch.from_numpy(arrays[f"{sample['key']}.{name}"]) for name in ("pixel_values", "image_grid_thw")},
            }
            for group in found.values()
            for sample in group
        }


@pytest.mark.parametrize("case", TRAINED["cases"], ids=lambda c: f"{c['sample']}-b{c['block_size']}-{c['max_new_tokens']}")
def test_trained_weights(case: dict[str, Any], trained_models: dict[str, Any], samples: Any) -> None:
    """The released decoder's own ids, steps and number of forwards, in blocks that end in the answer's end and at the cap."""
    options: dict[str, Any] = {name: case[name] for name in ("block_size", "confidence_threshold", "max_new_tokens")}
    options |= {name: TRAINED[name] for name in ("mask_token_id", "eos_token_id")}
    model, prompt = trained_models[case["model"]], samples[case["sample"]]
    paper = generate(model, prompt, schedule="paper", **options)
    assert paper.sequences[0].tolist() == case["output_ids"]
    assert list(paper.stats.steps_per_block[0]) == case["steps_per_block"]
    assert paper.stats.forwards == paper.stats.batch_forwards == case["forwards"]
    fused = generate(model, prompt, **options)
    assert torch.equal(fused.sequences, paper.sequences)
    assert fused.stats.forwards <= sum(case["steps_per_block"])
