"""The benchmark's second opponent decodes what the paper's released decoder did, and what our engine does in its schedule."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bard_core.decoding import generate
from bard_core.models import load

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
DECODES = json.loads((GOLDEN / "decode.json").read_text())


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(GOLDEN / "model", dtype=torch.float32).eval()


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import their neighbours by name, as when they are run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("case", DECODES["cases"][::3], ids=lambda c: f"{c['prompt']}-b{c['block_size']}-s{c['denoising_steps']}")
def test_the_released_style_is_the_released_decoder(case: dict[str, Any], model: Any, benchmarks: None) -> None:
    with np.load(GOLDEN / "model_io.npz") as arrays:
        names = [name for name in arrays if name.startswith(f"{case['prompt']}_") and "_train_" not in name]
        inputs = {name.removeprefix(f"{case['prompt']}_"): torch.from_numpy(arrays[name]) for name in names}
    options: dict[str, Any] = {
        "block_size": case["block_size"],
        "denoising_steps": case["denoising_steps"],
        "strategy": case["remasking_strategy"].removeprefix("low_confidence_"),
        "confidence_threshold": case["confidence_threshold"],
        "max_new_tokens": case["max_new_tokens"],
        "mask_token_id": DECODES["mask_token_id"],
        "eos_token_id": DECODES["eos_token_id"],
    }
    theirs = importlib.import_module("_released").released(model, inputs, options)
    ours = generate(model, inputs, schedule="paper", **options)
    assert torch.equal(theirs.sequences, ours.sequences)
    assert theirs.stats.forwards == ours.stats.forwards == sum(case["steps_per_block"]) + len(case["steps_per_block"])


TRAINED = json.loads((GOLDEN / "decode_trained.json").read_text())


@pytest.mark.parametrize("case", TRAINED["cases"][::5], ids=lambda c: f"{c['sample']}-b{c['block_size']}-{c['max_new_tokens']}")
def test_the_released_style_costs_what_the_release_does(case: dict[str, Any], benchmarks: None) -> None:
    """Trained weights, so answers end: the block in which one does is not committed."""
    with np.load(GOLDEN / "training" / "cases.npz") as arrays:
        expected = json.loads((GOLDEN / "training" / "expected.json").read_text())["samples"]
        (turn,) = [one["turns"][0] for group in expected.values() for one in group if one["key"] == case["sample"]]
        names = ("input_ids", "pixel_values", "image_grid_thw")
        inputs = {name: torch.from_numpy(arrays[f"{case['sample']}.{name}"]) for name in names}
    inputs["input_ids"] = inputs["input_ids"][None, : turn[0]].long()
    options: dict[str, Any] = {name: case[name] for name in ("block_size", "confidence_threshold", "max_new_tokens")}
    options |= {name: TRAINED[name] for name in ("mask_token_id", "eos_token_id")}
    theirs = importlib.import_module("_released").released(load(GOLDEN / "training" / case["model"]), inputs, options)
    assert theirs.sequences[0].tolist() == case["output_ids"] and theirs.stats.forwards == case["forwards"]


@pytest.mark.parametrize("clean_attention", ["block", "causal"])
def test_the_released_style_gives_the_ids_of_our_engine(clean_attention: str, model: Any, benchmarks: None) -> None:
    released = importlib.import_module("_released").released
    for seed in range(4):
        inputs = {"input_ids": torch.randint(0, 480, (1, 9), generator=torch.Generator().manual_seed(seed))}
        options: dict[str, Any] = {
            "block_size": 4, "max_new_tokens": 24, "mask_token_id": DECODES["mask_token_id"], "eos_token_id": [],
            "confidence_threshold": 0.4, "clean_attention": clean_attention,
        }  # fmt: skip
        assert torch.equal(released(model, inputs, options).sequences, generate(model, inputs, **options).sequences)


def test_a_forced_case_is_measured(model: Any, benchmarks: None) -> None:
    decode = importlib.import_module("decode")
    found = decode.measure(
        model, decode.Case(prefix=12, batch=2, block_size=8, steps=(2, 3), new_tokens=16), repeats=1, engines={"engine": False}
    )
    numbers = found["decoders"]
    assert list(numbers) == ["ar", "released, 2 steps", "engine, 2 steps", "released, 3 steps", "engine, 3 steps"]
    assert [round(one["tokens_per_forward"], 3) for one in numbers.values()] == [1.0, 2.667, 4.0, 2.0, 2.667]
    assert found["engine_over_ar"]["2"] == numbers["engine, 2 steps"]["tokens_per_s"] / numbers["ar"]["tokens_per_s"]
