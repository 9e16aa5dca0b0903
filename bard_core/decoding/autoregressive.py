"""The baseline: greedy autoregressive decoding by Hugging Face ``generate`` with its own key-value cache, honestly counted."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bard_core.decoding.output import GenerationOutput, GenerationStats, RowStats
from bard_core.decoding.prompt import left_padded
from bard_core.decoding.settings import end_tokens, padding_token


class _FirstToken:
    """A stopping criterion that never stops; it notes when the first token came."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.at is None:
            if input_ids.is_cuda:
                torch.cuda.synchronize(input_ids.device)
            self.at = time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def generate_autoregressive(
    model: Any,
    inputs: Mapping[str, Any],
    *,
    max_new_tokens: int = 256,
    eos_token_id: int | list[int] | None = None,
    mask_token_id: int | None = None,
) -> GenerationOutput:
    """Greedy decoding, one token a forward.

    A row's forwards are its tokens (the prefill yields the first), so tokens_per_forward is 1 by definition.

    Args:
        inputs: as for ``generate``; every row needs at least one token.
        eos_token_id: default: the generation config's.
        mask_token_id: given, this token is never emitted.

    Raises:
        ValueError: max_new_tokens < 1, or a row of the prompt is empty.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be >= 1")
    batch = left_padded(inputs)
    if not bool(batch["attention_mask"].any(1).all()):
        raise ValueError("autoregressive decoding starts from the prompt's last token, but a row of input_ids is empty")
    device = model.get_input_embeddings().weight.device
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    if hasattr(model.base_model, "get_rope_index") and "mm_token_type_ids" not in batch and "image_grid_thw" in batch:
        batch["mm_token_type_ids"] = (batch["input_ids"] == model.config.image_token_id).int()
    eos = end_tokens(model, eos_token_id)
    pad = padding_token(model, eos)
    first = _FirstToken()
    started = time.perf_counter()
    ids = model.generate(
        **batch,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(eos) or None,
        pad_token_id=pad,
        suppress_tokens=None if mask_token_id is None else [mask_token_id],
        stopping_criteria=[first],
    )
    response = ids[:, batch["input_ids"].shape[1] :].tolist()
    ended = time.perf_counter()
    lengths = [next((i + 1 for i, token in enumerate(row) if token in eos), len(row)) for row in response]
    first_s = (first.at or ended) - started
    stats = GenerationStats(
        rows=tuple(RowStats(real_tokens=length, forwards=length) for length in lengths),
        batch_forwards=len(response[0]),
        prefill_s=first_s,
        decode_s=ended - started - first_s,
        time_to_first_token_s=first_s,
    )
    return GenerationOutput(ids[:, batch["input_ids"].shape[1] :], stats)
