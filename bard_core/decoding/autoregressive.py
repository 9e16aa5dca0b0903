"""The baseline: greedy autoregressive decoding by Hugging Face ``generate`` with its KV cache."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from bard_core.decoding.engine import end_token_ids
from bard_core.decoding.output import DecodingStats, GenerationOutput, trim


class _FirstTokenClock(StoppingCriteria):
    """Never stops; notes when the first token is there, which is when prefill ends."""

    def __init__(self) -> None:
        self.first: float | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.first is None:
            self.first = time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def generate_autoregressive(
    model: Any, inputs: Mapping[str, Tensor], *, max_new_tokens: int = 256, eos_token_id: int | list[int] | None = None
) -> GenerationOutput:
    """Decode a left-padded batch greedily; a row's forwards are its tokens, so tokens per forward is 1.

    The first token comes with the prefill and is counted as a forward like any other; its time is prefill's, as it is when
    every later token is timed as decoding.
    """
    ends = end_token_ids(model, eos_token_id)
    clock = _FirstTokenClock()
    started = time.perf_counter()
    out = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=ends[0],
        stopping_criteria=[clock],
    )
    done = time.perf_counter()
    sequences, real = trim(out[:, inputs["input_ids"].shape[1] :], ends, ends[0], max_new_tokens)
    ready = clock.first or done
    return GenerationOutput(sequences, DecodingStats(real, list(real), [[] for _ in real], ready - started, done - ready))
