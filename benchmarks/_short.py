"""The short part of ``decode.py``: whole calls, prefill included, of trained models whose answers are about 25 tokens.

What such a call costs is its forwards and all that is around them, so both are timed: the model's own forwards (body, head and
positions) and the rest. Decoders take turns on each prompt; processor time of one thread, so that a busy machine matters little.
Models: folders with a ``bard`` entry in their config. Prompts: the cases of ``golden/training`` up to their answers.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _released import released

from bard_core.decoding import GenerationOutput, generate
from bard_core.models import bard_settings, load

OPTIONS: dict[str, Any] = {"confidence_threshold": 0.9, "max_new_tokens": 64, "eos_token_id": 2}


def measure_short(folder: Path, repeats: int) -> dict[str, Any]:
    """Every model under ``folder`` at its own block size and at half or twice that, by name and block size."""
    prompts, found = _prompts(folder), {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for path in sorted(folder.glob("*/config.json")):
            model = load(path.parent)
            own = bard_settings(model).block_size
            for size in sorted({own, own * 2 if own < 16 else own // 2}):
                name = f"{path.parent.name}, blocks of {size}"
                found[name] = _measure(model, size, prompts, repeats)
                print(name, found[name], flush=True)
    finally:
        torch.set_num_threads(before)
    return found


def _prompts(folder: Path) -> list[dict[str, Any]]:
    samples = json.loads((folder / "expected.json").read_text())["samples"]
    with np.load(folder / "cases.npz") as arrays:
        read = {name: torch.from_numpy(arrays[name]) for name in arrays.files if not name.startswith("noise")}
    return [
        {
            "input_ids": read[f"{one['key']}.input_ids"][None, : one["turns"][0][0]].long(),
            "pixel_values": read[f"{one['key']}.pixel_values"],
            "image_grid_thw": read[f"{one['key']}.image_grid_thw"],
        }
        for group in samples.values()
        for one in group
    ]


def _measure(model: Any, block_size: int, prompts: list[dict[str, Any]], repeats: int) -> dict[str, Any]:
    options: Any = {**OPTIONS, "block_size": block_size}
    decoders: dict[str, Callable[[Any], GenerationOutput]] = {
        "released style": partial(released, model, options=options),
        "engine": partial(generate, model, **options),
    }
    calls: dict[str, list[list[tuple[float, float]]]] = {name: [[] for _ in prompts] for name in decoders}
    outputs: dict[str, list[GenerationOutput]] = {}
    with _own_time(model) as own:
        for repeat in range(repeats + 1):
            for index, prompt in enumerate(prompts):
                for name, decode in decoders.items():
                    own[0], started = 0.0, time.process_time()
                    output = decode(prompt)
                    taken = time.process_time() - started
                    if repeat:
                        calls[name][index].append((taken, own[0]))
                    else:
                        outputs.setdefault(name, []).append(output)
    ids = [[output.sequences.tolist() for output in one] for one in outputs.values()]
    assert ids[0] == ids[1], "the engine and the released style disagree"
    numbers = {
        name: {
            "ms_a_call": 1000 * float(np.mean([median(taken for taken, _ in one) for one in timed])),
            "ms_besides_forwards": 1000 * float(np.mean([median(taken - inside for taken, inside in one) for one in timed])),
            "forwards": sum(output.stats.forwards for output in outputs[name]),
            "real_tokens": sum(output.stats.real_tokens for output in outputs[name]),
        }
        for name, timed in calls.items()
    }
    return {**numbers, "engine_over_released_style": numbers["released style"]["ms_a_call"] / numbers["engine"]["ms_a_call"]}


@contextmanager
def _own_time(model: Any) -> Iterator[list[float]]:
    """Processor seconds spent in the model's own forwards: body, decoder, head and position ids, the outermost counted."""
    spent, depth = [0.0], [0]
    parts = [(model.base_model, "forward"), (model.get_decoder(), "forward"), (model.get_output_embeddings(), "forward")]
    parts += [(model.base_model, "get_rope_index")] if hasattr(model.base_model, "get_rope_index") else []

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            depth[0] += 1
            try:
                return call(*args, **kwargs)
            finally:
                depth[0] -= 1
                if not depth[0]:
                    spent[0] += time.process_time() - started

        return wrapper

    for module, name in parts:
        module.__dict__[name] = timed(getattr(module, name))
    try:
        yield spent
    finally:
        for module, name in parts:
            del module.__dict__[name]
