"""The baseline: greedy autoregressive decoding by Hugging Face ``generate`` with its own key-value cache, honestly counted."""

import time
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from bard_core.decoding.ending import Ending
from bard_core.decoding.output import GenerationOutput, GenerationStats, RowStats, pad_sequences
from bard_core.decoding.prompt import VISUAL, left_padded, token_types
from bard_core.decoding.rows import refuse_broken
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


class _Finite:
    """A logits processor that notes which rows' logits are not finite, without waiting for the device."""

    def __init__(self) -> None:
        self.broken_B: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        broken_B = ~scores.logsumexp(-1).isfinite()
        self.broken_B = broken_B if self.broken_B is None else self.broken_B | broken_B
        return scores

    def check(self) -> None:
        """Raise FloatingPointError for the first such row."""
        assert self.broken_B is not None
        for row, broken in enumerate(self.broken_B.tolist()):
            refuse_broken(broken, row, "autoregressive decoding")


def _view(model: Any, config: GenerationConfig) -> Any:
    """The same model with a generation config of its own: neither the model nor calls in other threads see anything of it.

    ``generate`` takes what a config leaves open from the model's, a repetition penalty say; Qwen's bodies keep notes of a call.
    """
    view = copy(model)
    view.generation_config = config
    view._modules = {**model._modules, model.base_model_prefix: copy(model.base_model)}
    return view


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
        FloatingPointError: the model's logits are not finite; the message names the row.
    """
    weight = model.get_input_embeddings().weight
    ending = read_ending(model, len(weight), max_new_tokens, eos_token_id, stop_strings, tokenizer)
    batch = left_padded(model, inputs, len(weight))
    if not bool(batch["attention_mask"].any(1).all()):
        raise ValueError("autoregressive decoding starts from the prompt's last token, but a row of input_ids is empty")
    batch = {name: value.to(weight.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    if hasattr(model.base_model, "get_rope_index") and "mm_token_type_ids" not in batch and any(name in batch for name in VISUAL):
        batch["mm_token_type_ids"] = token_types(model, batch["input_ids"])
    eos = ending.eos_token_ids
    watch, finite = _Watch(batch["input_ids"].shape[1], ending), _Finite()
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
    ids = _view(model, greedy).generate(**batch, stopping_criteria=[watch], logits_processor=[finite])
    answers = [ending.cut([], row)[0] for row in ids[:, batch["input_ids"].shape[1] :].tolist()]
    finite.check()
    ended = time.perf_counter()
    sequences = pad_sequences(answers, padding_token(model, eos), weight.device)
    first_s = (watch.first_at or ended) - started
    stats = GenerationStats(
        rows=tuple(RowStats(real_tokens=len(answer), forwards=len(answer)) for answer in answers),
        batch_forwards=ids.shape[1] - batch["input_ids"].shape[1],
        prefill_s=first_s,
        decode_s=ended - started - first_s,
        time_to_first_token_s=first_s,
    )
    return GenerationOutput(sequences, stats)
