"""The baseline: greedy autoregressive decoding by Hugging Face ``generate`` with its own key-value cache, honestly counted."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from bard_core.decoding.ending import Ending
from bard_core.decoding.output import GenerationOutput, GenerationStats, RowStats
from bard_core.decoding.prompt import VISUAL, left_padded, token_types
from bard_core.decoding.settings import padding_token, read_ending


class _Watch:
    """A stopping criterion that notes when the first token came, and stops a row at its stop string."""

    def __init__(self, prompt_length: int, ending: Ending) -> None:
        self.prompt_length = prompt_length
        self.ending = ending
        self.first_at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.first_at is None:
            if input_ids.is_cuda:
                torch.cuda.synchronize(input_ids.device)
            self.first_at = time.perf_counter()
        if not self.ending.stop_strings:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        rows = input_ids[:, self.prompt_length :].tolist()
        return torch.tensor([self.ending.cut([], row)[1] for row in rows], device=input_ids.device)


@contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Put the model's own aside for one call: ``generate`` would take from it whatever is not set, a repetition penalty say."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before


@torch.inference_mode()
def generate_autoregressive(
    model: Any,
    inputs: Mapping[str, Any],
    *,
    max_new_tokens: int = 256,
    eos_token_id: int | list[int] | None = None,
    mask_token_id: int | None = None,
    stop_strings: Sequence[str] = (),
    tokenizer: Any = None,
) -> GenerationOutput:
    """Greedy decoding, one token a forward; penalties and the like of the generation config are left out.

    A row's forwards are its tokens (the prefill yields the first), so tokens_per_forward is 1 by definition.

    Args:
        inputs: as for ``generate``; every row needs at least one token.
        eos_token_id: default: the generation config's.
        mask_token_id: given, this token is never emitted.
        stop_strings, tokenizer: as for ``generate``.

    Raises:
        ValueError: as ``generate``, or an empty row in the prompt.
    """
    ending = read_ending(model, max_new_tokens, eos_token_id, stop_strings, tokenizer)
    batch = left_padded(model, inputs)
    if not bool(batch["attention_mask"].any(1).all()):
        raise ValueError("autoregressive decoding starts from the prompt's last token, but a row of input_ids is empty")
    device = model.get_input_embeddings().weight.device
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    if hasattr(model.base_model, "get_rope_index") and "mm_token_type_ids" not in batch and any(name in batch for name in VISUAL):
        batch["mm_token_type_ids"] = token_types(model, batch["input_ids"])
    eos = ending.eos_token_ids
    watch = _Watch(batch["input_ids"].shape[1], ending)
    started = time.perf_counter()
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(eos) or None,
        pad_token_id=padding_token(model, eos),
        suppress_tokens=None if mask_token_id is None else [mask_token_id],
    )
    with _generation_config(model, greedy):
        ids = model.generate(**batch, stopping_criteria=[watch])
    response = ids[:, batch["input_ids"].shape[1] :]
    rows = response.tolist()
    ended = time.perf_counter()
    lengths = [len(ending.cut([], row)[0]) for row in rows]
    first_s = (watch.first_at or ended) - started
    stats = GenerationStats(
        rows=tuple(RowStats(real_tokens=length, forwards=length) for length in lengths),
        batch_forwards=response.shape[1],
        prefill_s=first_s,
        decode_s=ended - started - first_s,
        time_to_first_token_s=first_s,
    )
    return GenerationOutput(response, stats)
