"""What the engine refuses, and what it takes for granted about a prompt."""

from typing import Any

import pytest
import torch

from bard_core.decoding import generate, generate_autoregressive, stream

from .test_engine import MASK


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 0},
        {"block_size": "8"},
        {"block_size": 8.0},
        {"block_size": True},
        {"denoising_steps": 9},
        {"denoising_steps": 0},
        {"denoising_steps": 2.5},
        {"strategy": "random"},
        {"schedule": "fast"},
        {"confidence_threshold": 0.0},
        {"confidence_threshold": "0.5"},
        {"entropy_bound": -1.0},
        {"entropy_bound": None},
        {"factor": 0.0},
        {"revision_threshold": 2.0},
        {"max_new_tokens": 0},
        {"max_new_tokens": 4.5},
        {"temperature": -1.0},
        {"temperature": float("inf")},
        {"temperature": 1e-40},
        {"top_k": 0},
        {"top_k": 2.0},
        {"top_p": 0.0},
        {"seed": 1.5},
        {"seed": 2**70},
        {"mask_token_id": None},
        {"mask_token_id": 10**6},
        {"mask_token_id": 5.0},
        {"mask_token_id": 7, "eos_token_id": [3, 7]},
        {"eos_token_id": "</s>"},
        {"eos_token_id": [3, -1]},
        {"eos_token_id": 512},
        {"pad_token_id": -1},
        {"pad_token_id": 512},
        {"compiled": "no"},
        {"clean_attention": "full"},
        {"strategy": "self_speculative"},
    ],
    ids=str,
)
def test_invalid_options_are_named(options: dict[str, Any], model: Any, prompts: Any) -> None:
    good = {"block_size": 8, "mask_token_id": MASK}
    name = "clean_attention" if options.get("strategy") == "self_speculative" else next(iter(options))
    with pytest.raises(ValueError, match=name):
        stream(model, prompts["text"], **(good | options))


IDS = torch.ones(1, 3, dtype=torch.long)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"input_ids": IDS[0]},
        {"input_ids": IDS.float()},
        {"input_ids": IDS, "attention_mask": torch.ones(1, 4)},
        {"input_ids": IDS, "attention_mask": [[1, 1, 1]]},
        {"input_ids": -IDS},
        {"input_ids": 512 * IDS},
    ],
    ids=str,
)
def test_invalid_inputs_are_named(inputs: dict[str, Any], model: Any) -> None:
    with pytest.raises(ValueError, match="input_ids"):
        generate(model, inputs, block_size=4, mask_token_id=MASK)
    with pytest.raises(ValueError, match="input_ids"):
        generate_autoregressive(model, inputs, mask_token_id=MASK)


def test_any_number_but_zero_in_the_attention_mask_is_a_token(model: Any, prompts: Any) -> None:
    ids = prompts["text"]["input_ids"]
    seen = torch.tensor([[0, 0] + [1] * (ids.shape[1] - 2)])
    ones, twos, alone = (
        generate(model, inputs, block_size=4, max_new_tokens=8, mask_token_id=MASK).sequences
        for inputs in (
            {"input_ids": ids, "attention_mask": seen},
            {"input_ids": ids, "attention_mask": 2 * seen},
            {"input_ids": ids[:, 2:]},
        )
    )
    assert torch.equal(ones, alone) and torch.equal(twos, alone)
