"""What a task asks of generation (lmms-eval's ``gen_kwargs``): every key is honoured or refused, none is ignored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KNOWN = ("max_new_tokens", "until", "temperature", "top_p", "top_k", "do_sample", "seed")
ONLY = {"num_beams": 1, "repetition_penalty": 1, "image_aspect_ratio": "original"}  # the one value that our decoders have


class GenerationKwargsError(ValueError):
    """A task asks for what our decoders do not do: names the key, its value and what is allowed."""


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        max_new_tokens: None: the model's own.
        until: an answer ends before the first of these.
        sampling: ``temperature``, ``top_p``, ``top_k`` and ``seed`` as ``decoding.generate`` takes them; empty: greedy.
    """

    max_new_tokens: int | None = None
    until: tuple[str, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)


def read(given: Mapping[str, Any], mode: str) -> Asked:
    """Read a request's ``gen_kwargs``; ``mode`` is how the model decodes: ``block``, or ``ar``, which is greedy only.

    Raises:
        GenerationKwargsError: a key is unknown, or its value is not possible.
    """
    for name in given:
        if name not in KNOWN and name not in ONLY:
            raise _refusal(name, given[name], f"is unknown here; known are {', '.join((*KNOWN, *ONLY))}")
    for name, only in ONLY.items():
        if (value := given.get(name)) is not None and value != only:
            raise _refusal(name, value, f"is not supported: leave it out or write {only}")
    limit = given.get("max_new_tokens")
    if limit is not None and int(limit) < 1:
        raise _refusal("max_new_tokens", limit, "must be at least 1")
    return Asked(None if limit is None else int(limit), _stops(given.get("until")), _sampling(given, mode))


def _stops(until: Any) -> tuple[str, ...]:
    stops = (until,) if isinstance(until, str) else tuple(until or ())
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise _refusal("until", until, "must be a string or a list of strings, none of them empty")
    return stops


def _sampling(given: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """Nothing for greedy decoding, which ``top_p``, ``top_k`` and ``seed`` cannot change."""
    temperature = float(given.get("temperature") or 0.0)
    do_sample = given.get("do_sample")
    if temperature > 0.0 and do_sample is False:
        raise _refusal("temperature", temperature, "is above 0 but do_sample is false: write do_sample=True, or temperature=0")
    if temperature == 0.0 and do_sample:
        if given.get("temperature") is not None:
            raise _refusal("do_sample", do_sample, "needs a temperature above 0")
        temperature = 1.0
    if temperature == 0.0:
        return {}
    if mode == "ar":
        raise _refusal(
            "temperature", temperature, "is above 0, but mode=ar decodes greedily: write temperature=0,do_sample=False"
        )
    options: dict[str, Any] = {"temperature": temperature, "seed": int(given.get("seed") or 0)}
    if (top_p := given.get("top_p")) is not None and float(top_p) < 1.0:
        options["top_p"] = float(top_p)
    if top_k := given.get("top_k"):
        options["top_k"] = int(top_k)
    return options


def _refusal(name: str, value: Any, why: str) -> GenerationKwargsError:
    return GenerationKwargsError(f"gen_kwargs {name}={value!r} {why} (set by the task, or by --gen_kwargs)")
