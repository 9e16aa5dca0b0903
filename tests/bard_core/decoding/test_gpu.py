"""The engine on a GPU: the same ids as on the CPU, through the attention calls that only CUDA takes."""

import copy
from typing import Any

import pytest
import torch

from bard_core.decoding import generate, generate_autoregressive

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
MASK, EOS = 510, 509  # of the tiny golden model


@pytest.fixture(scope="module")
def on_gpu(model: Any) -> Any:
    return copy.deepcopy(model).to("cuda")


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "static", "denoising_steps": 3},
        {"strategy": "dynamic", "confidence_threshold": 0.4},
        {"strategy": "dynamic", "confidence_threshold": 0.4, "schedule": "paper"},
        {"strategy": "factor", "factor": 1.5, "clean_attention": "causal"},
        {"strategy": "self_speculative", "clean_attention": "causal"},
    ],
    ids=str,
)
@pytest.mark.parametrize("compiled", [False, True])
def test_unequal_rows_decode_as_on_the_cpu(compiled: bool, options: dict[str, Any], model: Any, on_gpu: Any, mixed: Any) -> None:
    """Unequal prompts need masks, which grouped-query attention takes only repacked there; single rows need none."""
    settings: dict[str, Any] = {"block_size": 8, "max_new_tokens": 20, "mask_token_id": MASK, "eos_token_id": EOS, **options}
    for inputs in (mixed[0], *mixed[1]):
        expected, got = generate(model, inputs, **settings), generate(on_gpu, inputs, compiled=compiled, **settings)
        assert torch.equal(got.sequences.cpu(), expected.sequences)
        assert got.stats.forwards == expected.stats.forwards


def test_the_baseline_decodes_as_on_the_cpu(model: Any, on_gpu: Any, mixed: Any) -> None:
    expected, got = (generate_autoregressive(m, mixed[0], max_new_tokens=12, eos_token_id=EOS) for m in (model, on_gpu))
    assert torch.equal(got.sequences.cpu(), expected.sequences)
