"""How costs grow: a training step and a decoding forward against prefix, answer, block size and batch, with fitted exponents.

    make bench-growth

One size is changed at a time; the others stand at ``BASE``. Weights are random, every step of a block accepts as many tokens as
the others (policy ``static``), and no answer ends early. Each point is the best of some repeats. An exponent is the slope of
log cost over log size, by least squares over all points (``exponent``) and over the last two (``last``): 1 is linear, 0 free.
Concurrency is ``make bench-serve``'s. Results go to ``benchmarks/results/growth-<machine>.json``.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from _machine import write
from decode import MASK, PAD, SHAPES, build

from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.train import OptimizerConfig, TrainConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example, attach_positions
from bard_core.decoding import generate
from bard_core.training.loop import train_step
from bard_core.training.objectives import ProgressiveBlockMerging
from bard_core.training.optimizer import build_optimizer

SHAPE = SHAPES["25m"]
WORDS = torch.arange(8, SHAPE.vocabulary)


@dataclass(frozen=True)
class Sizes:
    """Tokens of a prompt and of its answer, tokens of a block, and samples at once."""

    prefix: int = 512
    answer: int = 128
    block: int = 8
    batch: int = 1


BASE = Sizes()
TRAINED = {"prefix": (256, 512, 1024, 2048), "answer": (64, 128, 256, 512), "block": (4, 8, 16, 32), "batch": (1, 2, 4)}
DECODED = {"prefix": (256, 512, 1024, 2048, 4096), "block": (4, 8, 16, 32, 64), "batch": (1, 2, 4, 8)}


def training_step_s(model: Any, sizes: Sizes) -> float:
    """Seconds of forward, backward and optimizer step of one packed batch."""
    drawn = torch.randint(8, SHAPE.vocabulary, (sizes.batch, sizes.prefix + sizes.answer))
    examples = [Example(str(n), row, [(sizes.prefix, len(row))], [], []) for n, row in enumerate(drawn)]
    attach_positions(examples, model)
    spec = BatchSpec(sizes.block, NoiseConfig(), MASK, PAD, PAD, WORDS, max_tokens_per_row=sizes.prefix + 2 * sizes.answer)
    config = TrainConfig(steps=1, batch_size=sizes.batch, precision="float32", optimizer=OptimizerConfig())
    objective = ProgressiveBlockMerging(model, "block", "mask", 0.0).train()
    optimizer = build_optimizer(model, config.optimizer)
    batch = collate([(example, 0) for example in examples], spec).to(model.device)
    started = time.perf_counter()
    done = train_step(objective, optimizer, [batch], lambda *_: None, config, spec, world=1)
    float(done.losses["loss"])  # waits for the device
    return time.perf_counter() - started


def forward_s(model: Any, sizes: Sizes) -> float:
    """Seconds of one decoding forward after the prompt's."""
    model.eval()
    ids = torch.randint(8, SHAPE.vocabulary, (sizes.batch, sizes.prefix), device=model.device)
    stats = generate(
        model, {"input_ids": ids}, block_size=sizes.block, denoising_steps=max(2, sizes.block // 4), strategy="static",
        max_new_tokens=3 * sizes.block, mask_token_id=MASK, pad_token_id=PAD, eos_token_id=[],
    ).stats  # fmt: skip
    return stats.decode_s / stats.batch_forwards


def curve(cost: Callable[[Any, Sizes], float], model: Any, name: str, over: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """The best cost at each size, and how it grows."""
    at = [replace(BASE, **{name: size}) for size in over]
    cost(model, at[0])  # kernels are chosen, memory is taken
    seconds = [min(cost(model, sizes) for _ in range(repeats)) for sizes in at]
    logs = np.log(np.array([over, seconds]))
    slope = float(np.polyfit(*logs, 1)[0])
    last = float(np.diff(logs[1])[-1] / np.diff(logs[0])[-1])
    return {"over": name, "sizes": over, "seconds": seconds, "exponent": slope, "last": last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model = build(SHAPE)
    curves = []
    for what, cost, sizes in (("training step", training_step_s, TRAINED), ("decoding forward", forward_s, DECODED)):
        for name, over in sizes.items():
            found = curve(cost, model, name, over, arguments.repeats)
            told = ", ".join(f"{size}: {1000 * seconds:.0f} ms" for size, seconds in zip(over, found["seconds"], strict=True))
            print(f"{what} over {name}: {told}; exponent {found['exponent']:.2f}, last {found['last']:.2f}", flush=True)
            curves.append({"of": what, **found})
    print(write("growth", {"base": vars(BASE), "shape": vars(SHAPE), "curves": curves}))


if __name__ == "__main__":
    main()
