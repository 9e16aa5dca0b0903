"""The settings of a decode, checked before the model is touched."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypedDict

from bard_core.decoding.ending import Ending
from bard_core.diffusion.names import CleanAttention
from bard_core.models import bard_settings
from bard_core.models.vlm import embedding_rows

Strategy = Literal["dynamic", "static", "entropy", "factor", "self_speculative"]
Schedule = Literal["fused", "paper"]
STRATEGIES: tuple[str, ...] = ("dynamic", "static", "entropy", "factor", "self_speculative")
SCHEDULES: tuple[str, ...] = ("fused", "paper")


class Options(TypedDict, total=False):
    """Keyword arguments of ``generate`` and ``stream``; ``Settings`` says what each means."""

    block_size: int | None
    denoising_steps: int | None
    strategy: Strategy
    confidence_threshold: float
    entropy_bound: float
    factor: float
    revision_threshold: float | None
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    mask_token_id: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    stop_strings: Sequence[str]
    tokenizer: Any
    schedule: Schedule
    clean_attention: CleanAttention | None
    compiled: bool


@dataclass(frozen=True)
class Settings:
    """What ``resolve`` makes of the options.

    Attributes:
        block_size: tokens denoised together; default: what the model's config records.
        denoising_steps: steps the quota of static and dynamic spreads a block over; default: block_size.
        strategy: static, dynamic (paper), entropy, factor, or self_speculative (needs a token-causal clean stream).
        confidence_threshold: dynamic accepts above it, in (0, 1].
        entropy_bound: nats, for entropy.
        factor: for factor; larger accepts more.
        revision_threshold: a filled token of the open block whose probability falls below is opened again, once; None: never.
            Only for models trained with noise that replaces tokens (uniform, edit, mix): mask noise alone teaches nothing about
            a token that is there, and revision then throws right ones away.
        ending: end tokens (default: the generation config's), the cap ``max_new_tokens``, and ``stop_strings``, which need a
            ``tokenizer`` and are looked for when a block is final.
        temperature: 0 is greedy. top_k, top_p: filters when sampling.
        seed: of the sampling noise. Row r draws as a row alone would with ``seed + r``, whatever its neighbours are.
        mask_token_id: default: what the model's config records.
        pad_token_id: fills rows after their end; default: the generation config's, else the first end token, else 0.
        schedule: "paper" commits every block but an answer's last in a forward of its own, and always fills it. "fused" lets the
            first step ride with the prefill, and the clean pass with the next block's first step. It stops a block once
            everything up to its end token is filled, so revision has no later steps to change the answer's last block in.
        clean_attention: how clean tokens see each other; default: what the model's config records.
        compiled: run the forwards after the prefill with static shapes through ``torch.compile`` (CUDA graphs on a GPU). The
            first decode of a shape (rows, block size, prompt length up to the next power of two) takes up to a minute.
    """

    block_size: int
    denoising_steps: int
    strategy: Strategy
    confidence_threshold: float
    entropy_bound: float
    factor: float
    revision_threshold: float | None
    ending: Ending
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    mask_token_id: int
    pad_token_id: int
    schedule: Schedule
    clean_attention: CleanAttention
    compiled: bool


def resolve(
    model: Any,
    *,
    block_size: int | None = None,
    denoising_steps: int | None = None,
    strategy: Strategy = "dynamic",
    confidence_threshold: float = 0.9,
    entropy_bound: float = 0.5,
    factor: float = 1.0,
    revision_threshold: float | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    mask_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    stop_strings: Sequence[str] = (),
    tokenizer: Any = None,
    schedule: Schedule = "fused",
    clean_attention: CleanAttention | None = None,
    compiled: bool = False,
) -> Settings:
    """Fill the defaults from the model and check every value.

    Raises:
        ValueError: a value is out of range, naming it and what is allowed.
    """
    recorded = bard_settings(model)
    size = recorded.block_size if block_size is None else block_size
    _require(_whole(size, 1), "block_size", size, "a whole number >= 1")
    steps = size if denoising_steps is None else denoising_steps
    _require(_whole(steps, 1, size), "denoising_steps", steps, f"a whole number from 1 to block_size ({size})")
    _require(strategy in STRATEGIES, "strategy", strategy, "one of " + ", ".join(STRATEGIES))
    _require(schedule in SCHEDULES, "schedule", schedule, "one of " + ", ".join(SCHEDULES))
    _require(_share(confidence_threshold), "confidence_threshold", confidence_threshold, "in (0, 1]")
    _require(_real(entropy_bound) and entropy_bound >= 0.0, "entropy_bound", entropy_bound, ">= 0 nats")
    _require(_real(factor) and factor > 0.0, "factor", factor, "> 0")
    _require(revision_threshold is None or _share(revision_threshold), "revision_threshold", revision_threshold, "in (0, 1]")
    in_float32 = _real(temperature) and (temperature == 0.0 or 1e-6 <= temperature <= 1e6)
    _require(in_float32, "temperature", temperature, "0 or from 1e-6 to 1e6")
    _require(top_k is None or _whole(top_k, 1), "top_k", top_k, "a whole number >= 1 or None")
    _require(top_p is None or _share(top_p), "top_p", top_p, "in (0, 1] or None")
    _require(_whole(seed, -(2**63), 2**64 - 1), "seed", seed, "a whole number of at most 64 bits")
    _require(isinstance(compiled, bool), "compiled", compiled, "True or False")
    rows = embedding_rows(model)
    mask = recorded.mask_token_id if mask_token_id is None else mask_token_id
    if mask is None or not _whole(mask, 0, rows - 1):
        raise ValueError(f"mask_token_id is {mask!r}: the model's config records none that fits its {rows} tokens, so pass one")
    allowed = f"a token from 0 to {rows - 1} or None"
    _require(pad_token_id is None or _whole(pad_token_id, 0, rows - 1), "pad_token_id", pad_token_id, allowed)
    attention = recorded.clean_attention if clean_attention is None else clean_attention
    _require(attention in ("block", "causal"), "clean_attention", attention, "block or causal")
    if strategy == "self_speculative":
        _require(
            attention == "causal", "clean_attention", attention, "causal for strategy self_speculative, which verifies in AR mode"
        )
        _require(
            temperature == 0.0, "temperature", temperature, "0 for strategy self_speculative, which reproduces greedy decoding"
        )
        _require(revision_threshold is None, "revision_threshold", revision_threshold, "None for strategy self_speculative")
    ending = read_ending(model, rows, max_new_tokens, eos_token_id, stop_strings, tokenizer)
    _require(mask not in ending.eos_token_ids, "mask_token_id", mask, "none of the end tokens: it is never emitted")
    return Settings(
        size, steps, strategy, confidence_threshold, entropy_bound, factor, revision_threshold, ending, temperature,
        top_k, top_p, seed, mask, padding_token(model, ending.eos_token_ids, pad_token_id), schedule, attention,
        compiled,
    )  # fmt: skip


def read_ending(
    model: Any, rows: int, max_new_tokens: int, eos_token_id: int | list[int] | None, stop_strings: Sequence[str], tokenizer: Any
) -> Ending:
    """How responses end; ``rows``: tokens the model has.

    Raises:
        ValueError: max_new_tokens < 1, an end token the model does not have, or the stop strings are not strings with text in
            them, or lack a tokenizer.
    """
    _require(_whole(max_new_tokens, 1), "max_new_tokens", max_new_tokens, "a whole number >= 1")
    several = isinstance(stop_strings, Collection) and not isinstance(stop_strings, str)
    named = several and all(isinstance(stop, str) and stop for stop in stop_strings)
    _require(named, "stop_strings", stop_strings, "a sequence of strings, none of them empty")
    if not stop_strings:
        return Ending(end_tokens(model, rows, eos_token_id), max_new_tokens)
    if tokenizer is None:
        raise ValueError("stop_strings are looked for in text: pass the tokenizer (or processor) that decodes it")
    text_tokenizer = getattr(tokenizer, "tokenizer", tokenizer)

    def detokenize(tokens: list[int]) -> str:
        return str(text_tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return Ending(end_tokens(model, rows, eos_token_id), max_new_tokens, tuple(stop_strings), detokenize)


def end_tokens(model: Any, rows: int, eos_token_id: int | list[int] | None) -> tuple[int, ...]:
    """End tokens as a tuple; None: the generation config's (there may be none).

    Raises:
        ValueError: one that is given is no token of the model.
    """
    if eos_token_id is None:
        eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    several = isinstance(eos_token_id, Collection) and not isinstance(eos_token_id, str)
    tokens = tuple(eos_token_id) if several else (eos_token_id,)  # type: ignore[arg-type]
    last = rows - 1
    _require(
        all(_whole(token, 0, last) for token in tokens), "eos_token_id", eos_token_id, f"a token from 0 to {last}, or several"
    )
    return tuple(int(token) for token in tokens)  # type: ignore[arg-type]


def padding_token(model: Any, eos: tuple[int, ...], pad_token_id: int | None = None) -> int:
    """What fills a row after its end."""
    pad = getattr(getattr(model, "generation_config", None), "pad_token_id", None) if pad_token_id is None else pad_token_id
    return int(pad) if pad is not None else eos[0] if eos else 0


def _whole(value: object, least: int, most: float = math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def _real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _share(value: object) -> bool:
    return _real(value) and 0.0 < float(value) <= 1.0  # type: ignore[arg-type]


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
