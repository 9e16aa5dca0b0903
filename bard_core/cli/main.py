"""``bard``, the command line.

bard plan configs/bard_4b.yaml      what a run will cost; needs no GPU
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from bard_core import plan as planning
from bard_core.config.file import read_pipeline
from bard_core.plan import GPU_MEMORY, Assumptions, Plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 2 when what it was given is at fault."""
    parser = argparse.ArgumentParser(prog="bard", description="Turn an autoregressive VLM into a block-diffusion one.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("plan", help="what a configuration will cost: memory, tokens, GPU-hours, sizes; needs no GPU")
    verb.add_argument("config", type=Path, help="a file of configs/")
    given = Assumptions()
    verb.add_argument("--gpu", choices=sorted(GPU_MEMORY), default=given.gpu, help=f"what to train on ({given.gpu})")
    verb.add_argument("--mfu", type=float, default=given.mfu, help=f"share of peak FLOP/s that is reached ({given.mfu})")
    verb.add_argument("--tokens-per-sample", type=int, help="mean tokens, noisy copies included (default: a full row)")
    image = given.image_tokens_per_sample
    verb.add_argument("--image-tokens-per-sample", type=int, default=image, help=f"how many of them are image ({image})")
    verb.add_argument("--train-samples", type=int, help="samples of the dataset, where a stage's length is in num_epochs")
    verb.add_argument("--json", action="store_true", help="the same numbers for machines")
    options = parser.parse_args(arguments)
    try:
        names = ("gpu", "mfu", "tokens_per_sample", "image_tokens_per_sample", "train_samples")
        assumptions = Assumptions(**{name: getattr(options, name) for name in names})
    except ValueError as error:
        verb.error(str(error))
    try:
        found = planning.plan(read_pipeline(options.config), assumptions)
    except (OSError, ValueError, ValidationError) as error:
        print(f"bard: {options.config}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(dataclasses.asdict(found), indent=2) if options.json else plan_text(found))
    return 0


def plan_text(plan: Plan) -> str:
    """A plan for the terminal."""
    given, numbers = plan.assumptions, plan.parameters
    room = GPU_MEMORY[given.gpu]
    heavy = max(plan.stages, key=lambda stage: sum(stage.memory.values()))
    need = sum(heavy.memory.values())
    tokens = f"{given.tokens_per_sample:,} tokens a sample" if given.tokens_per_sample else "a full row a sample, an upper bound"
    fits = "fits" if need <= room else "does NOT fit; more GPUs, accumulation or activation_checkpointing would help:"
    lines = [
        f"{plan.name}: {plan.model} on {plan.gpus} x {given.gpu}",
        f"parameters: {_count(numbers.total)} = decoder layers {_count(numbers.text_layers)}, vision {_count(numbers.vision)}, "
        f"embeddings {_count(numbers.embeddings)}; each GPU's shard of weights and AdamW is {_size(plan.shard)}",
        f"assumed: {tokens}; {given.image_tokens_per_sample:,} tokens of it image; {given.mfu:.0%} of peak FLOP/s",
        "",
        f"memory a GPU at the peak, in {heavy.name}: {_size(need)}, {fits} {_size(room)}",
        *(f"  {name:<18}{_size(size):>10}" for name, size in heavy.memory.items() if size),
        "",
        f"  {'stage':<9}{'from':<9}{'teacher':<9}{'steps':>8}{'tokens/step':>13}{'GPU-hours':>11}{'hours':>9}"
        f"{'checkpoint':>12}{'model':>10}",
    ]
    for stage in plan.stages:
        lines.append(
            f"  {stage.name:<9}{stage.parent:<9}{stage.teacher or '-':<9}{stage.steps:>8,}{_count(stage.tokens_per_step):>13}"
            f"{stage.gpu_hours:>11,.0f}{stage.gpu_hours / plan.gpus:>9,.1f}{_size(stage.checkpoint):>12}{_size(stage.model):>10}"
        )
    lines.append(f"  {'all':<48}{plan.gpu_hours:>11,.0f}{plan.gpu_hours / plan.gpus:>9,.1f}")
    lines.append("every model is evaluated as soon as it exists, and a report closes the run")
    return "\n".join(lines)


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"


def _size(number: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


if __name__ == "__main__":
    sys.exit(main())
