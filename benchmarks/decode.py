"""Decoding several ways, in turn, in one run: Hugging Face ``generate``, the released decoder's style, and our engine.

    make bench-decode                         # all parts
    python benchmarks/decode.py --part forced # random weights of a true shape: the engine free of a model's quality
    python benchmarks/decode.py --part lab    # the lab models of $BARD_HOME: accuracy against speed over policies and thresholds
    python benchmarks/decode.py --part short  # trained weights, short answers (--models: a folder like tests/golden/training)

The engine runs as it is and, in the forced part, compiled (``compiled=True``) too.

Greedy, same prompts and features for all, real tokens only, prefill apart. In the forced part every step accepts the same number
of tokens (policy ``static``) and no answer ends early. On a GPU the shape is that of Qwen3-VL-4B's text model in bfloat16, on a
CPU one of 100 M parameters in float32. Results go to ``benchmarks/results/decode_<part>-<machine>.json``.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _lab import sweep_lab
from _machine import write
from _released import released
from _short import measure_short

from bard_core.decoding import generate, generate_autoregressive
from bard_core.decoding.settings import Options
from bard_core.evaluation.speed import Decode, Timing, take_turns

MASK, PAD = 5, 0
TRAINED = Path(__file__).resolve().parent.parent / "tests" / "golden" / "training"
ENGINES = {"engine": False, "compiled": True}


@dataclass(frozen=True)
class Shape:
    """A text model, "25m" for servers and curves, "100m" in the proportions of "4b".

    The vision tower is a stub, since its features are part of the prompt.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True)
class Case:
    """One measurement: ``steps`` denoising steps a block, so block_size / steps tokens accepted at each."""

    prefix: int
    batch: int
    block_size: int
    steps: tuple[int, ...]
    new_tokens: int


SHAPES = {
    "25m": Shape(hidden=384, layers=10, heads=6, kv_heads=2, head_dim=64, intermediate=1536, vocabulary=1024),
    "100m": Shape(hidden=640, layers=14, heads=16, kv_heads=4, head_dim=64, intermediate=2432, vocabulary=16384),
    "4b": Shape(hidden=2560, layers=36, heads=32, kv_heads=8, head_dim=128, intermediate=9728, vocabulary=151936),
}
CASES = {
    "100m": [Case(1024, 1, 8, (3,), 32), Case(1024, 1, 32, (12,), 64), Case(4096, 1, 8, (3,), 32), Case(1024, 8, 8, (3,), 16)],
    "4b": [
        *(Case(prefix, 1, 32, (12, 8, 4), 256) for prefix in (1024, 4096, 16384)),
        *(Case(prefix, 8, 32, (12, 4), 256) for prefix in (1024, 4096)),
    ],
}


def build(shape: Shape) -> Any:
    """A stock Qwen3-VL with random weights, on the GPU in bfloat16 where there is one."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    half = shape.head_dim // 2
    section = [half - 2 * (half // 4), half // 4, half // 4]
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": section, "mrope_interleaved": True},
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": shape.hidden,
            "deepstack_visual_indexes": [],
        },
        tie_word_embeddings=True,
        image_token_id=1, video_token_id=2, vision_start_token_id=3, vision_end_token_id=4,
    )  # fmt: skip
    gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if gpu else torch.float32)
    try:
        with torch.device("cuda" if gpu else "cpu"):
            return Qwen3VLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)


def measure(model: Any, case: Case, repeats: int, engines: dict[str, bool]) -> dict[str, Any]:
    """All decoders in turn on random prompts of one length; ``engines`` says by name which are compiled."""
    generator = torch.Generator().manual_seed(case.prefix)
    rows = int(model.get_input_embeddings().weight.shape[0])
    prompts = [{"input_ids": torch.randint(8, rows, (case.batch, case.prefix), generator=generator)}]
    decoders: dict[str, Decode] = {
        "ar": partial(generate_autoregressive, model, max_new_tokens=case.new_tokens, eos_token_id=[], mask_token_id=MASK)
    }
    for steps in case.steps:
        options: Options = {
            "block_size": case.block_size, "denoising_steps": steps, "strategy": "static", "max_new_tokens": case.new_tokens,
            "mask_token_id": MASK, "pad_token_id": PAD, "eos_token_id": [],
        }  # fmt: skip
        decoders[f"released, {steps} steps"] = partial(released, model, options=options)
        for name, compiled in engines.items():
            decoders[f"{name}, {steps} steps"] = partial(generate, model, **options, compiled=compiled)
        assert _same_ids(decoders, steps, prompts[0]), "the engine and the released style disagree"
    timings = take_turns(prompts, decoders, repeats)
    return {
        **asdict(case),
        "repeats": repeats,
        "accepted_per_step": {str(steps): case.block_size / steps for steps in case.steps},
        "decoders": {name: timing.summary() for name, timing in timings.items()},
        **{
            f"{name}_over_{other.split(',')[0]}": {
                str(steps): _ratio(timings, f"{name}, {steps} steps", other.format(steps)) for steps in case.steps
            }
            for name in engines
            for other in ("released, {} steps", "ar")
        },
    }


def _same_ids(decoders: dict[str, Decode], steps: int, prompt: Any) -> bool:
    """Whether both give the same tokens; in bfloat16 a tie may break either way, so only float32 is held to it."""
    if torch.cuda.is_available():
        return True
    short = {"input_ids": prompt["input_ids"][:1, :64]}
    return torch.equal(*(decoders[f"{name}, {steps} steps"](short).sequences for name in ("engine", "released")))


def _ratio(timings: dict[str, Timing], one: str, other: str) -> float:
    return timings[one].tokens_per_s / timings[other].tokens_per_s


def forced(repeats: int, count: int | None, clock: str) -> None:
    """The forced-acceptance part: every case of the shape that fits this machine, each written as soon as it is measured."""
    name = "4b" if torch.cuda.is_available() else "100m"
    model = build(SHAPES[name])
    cases = []
    for case in CASES[name][:count]:
        found = measure(model, case, repeats, ENGINES)
        cases.append(found)
        print(f"{name}: prefix {case.prefix}, batch {case.batch}, blocks of {case.block_size}")
        for decoder, numbers in found["decoders"].items():
            print(
                f"  {decoder:20s} {numbers['tokens_per_s']:9.1f} tok/s  {numbers['ms_per_forward']:8.1f} ms/forward"
                f"  TPF {numbers['tokens_per_forward']:.2f}  prefill {numbers['prefill_s']:.2f} s"
            )
        for engine, steps in product(ENGINES, map(str, case.steps)):
            over_released, over_ar = found[f"{engine}_over_released"][steps], found[f"{engine}_over_ar"][steps]
            print(
                f"  {engine}, {steps} steps: {over_released:.2f}x the released style, {over_ar:.2f}x autoregression", flush=True
            )
        shape = {"name": name, **asdict(SHAPES[name])}
        write("decode_forced", {"clock": clock, "shape": shape, "cases": cases})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("all", "forced", "lab", "short"), default="all")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds over the prompts")
    parser.add_argument("--models", type=Path, default=TRAINED, help="models and cases of the short part")
    parser.add_argument("--cases", type=int, help="only the first so many cases of the forced part")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, where others share the cores"
    )
    arguments = parser.parse_args()
    if arguments.clock == "cpu":
        torch.set_num_threads(1)  # with one thread and a core to itself, a process's processor time is its wall time
        time.perf_counter = time.process_time
    if arguments.part in ("all", "forced"):
        forced(arguments.repeats, arguments.cases, arguments.clock)
    if arguments.part in ("all", "short"):
        write("decode_short", {"clock": "cpu", "cases": measure_short(arguments.models, 10 * arguments.repeats)})
    if arguments.part in ("all", "lab") and (found := sweep_lab()) is not None:
        write("decode_lab", {"clock": arguments.clock, **found})


if __name__ == "__main__":
    main()
