"""Our training step against the released code's approach, re-created here on the same model and the same noise.

    make bench-train                                    # tiny and 100 M parameters on a CPU, the 4B shape too on a GPU
    python benchmarks/train.py --shapes 100m --repeats 5

The released approach: for every sample a dense [L, L] mask built on the CPU, logits of the whole sequence in fp32, one sample
a forward. Ours: ``training.loop.train_step`` as the stages call it. Both take the same optimizer steps on the same samples, and
their losses have to agree. Every measurement is a process of its own, so that peak memory is that of one way only; the two ways
take turns. On a GPU both run in bf16 and are timed by the clock; on a CPU both run in fp32 on one thread and are timed by the
processor time they used, which neighbours on a shared machine lengthen little. A GPU also runs ours with the mask made densely,
which a CPU always does, and the 4B shape in rows of 16,384 tokens; model FLOPs utilisation is told where the peak is known.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

VOCABULARY, MASK, END = 151_936, 151_669, 151_645
COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "tie_word_embeddings": True, "max_position_embeddings": 32768}
# Qwen3's text body in three sizes; "4b" is that of Qwen3-VL-4B.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model": {
            "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32,
        },
        "prefix": 1024, "response": 512, "samples": 1,
    },
    "100m": {
        "model": {
            "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 7, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 64,
        },
        "prefix": 1024, "response": 512, "samples": 1,
    },
    "4b": {
        "model": {
            "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128,
        },
        "prefix": 4096, "response": 2048, "samples": 2,
    },
}  # fmt: skip
BLOCK = 32
WAYS = ("ours", "released", *(("ours_dense",) if torch.cuda.is_available() else ()))


def build(shape: dict[str, Any], device: torch.device) -> Any:
    """The model with random weights; bf16 with activation checkpointing on a GPU."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    with device:
        model = Qwen3ForCausalLM(Qwen3Config(**COMMON, **shape["model"]))
    torch.set_default_dtype(torch.float32)
    if device.type == "cuda":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def spec_and_examples(shape: dict[str, Any]) -> tuple[Any, list[Any]]:
    from bard_core.config.sections.noise import NoiseConfig
    from bard_core.data.batches import BatchSpec
    from bard_core.data.examples import Example

    length = shape["prefix"] + shape["response"]
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 151_000, (length,), generator=generator) for _ in range(shape["samples"])]
    examples = [Example(str(i), row, [(shape["prefix"], length)], [], []) for i, row in enumerate(rows)]
    for example in examples:
        example.position_ids_CN = torch.arange(length)[None]
    spec = BatchSpec(
        BLOCK, NoiseConfig(min_t=0.05), MASK, END, 151_643, torch.arange(151_000), "sample_mean", max_tokens_per_row=32768
    )
    return spec, examples


class Ours:
    """The training stages' own step. On a GPU the samples share a packed row; a CPU gains nothing from that."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, shape: dict[str, Any], device: torch.device) -> None:
        from bard_core.config.sections.train import TrainConfig
        from bard_core.training.objectives import ProgressiveBlockMerging

        self.spec, self.examples = spec_and_examples(shape)
        parts = 1 if device.type == "cuda" else len(self.examples)
        self.config = TrainConfig(steps=1, batch_size=len(self.examples), accumulation=parts, precision="float32")
        self.objective, self.optimizer, self.device = ProgressiveBlockMerging(model, "block", "mask", 0.0), optimizer, device

    def step(self, epoch: int) -> tuple[Tensor, int, int]:
        from bard_core.data.batches import collate
        from bard_core.training.loop import train_step

        parts = self.config.accumulation
        batches = [collate([(e, epoch) for e in self.examples[p::parts]], self.spec).to(self.device) for p in range(parts)]
        done = train_step(self.objective, self.optimizer, batches, lambda *_: None, self.config, self.spec, world=1)
        counts = ((batch.noisy.index_P.numel(), batch.input_ids_BL.numel()) for batch in batches)
        supervised, tokens = (sum(each) for each in zip(*counts, strict=True))
        return done.losses["loss"], supervised, tokens


class OursDense(Ours):
    """The same step with a boolean mask of every pair, for transformers' SDPA."""

    def step(self, epoch: int) -> tuple[Tensor, int, int]:
        from bard_core.models.attention import dense_mask
        from bard_core.training import objectives

        objectives.training_attention = dense_mask
        return super().step(epoch)


def released_mask(prefix: int, response: int) -> Tensor:
    """The figure's mask of ``[prefix | clean response | noisy response]``, boolean [L, L]; the response is whole blocks long."""
    first = -(-prefix // BLOCK)  # the response's first block
    blocks = first + torch.arange(response) // BLOCK
    block = torch.cat([torch.arange(prefix) // BLOCK, blocks, blocks])
    noisy = torch.arange(prefix + 2 * response) >= prefix + response
    query, key = block[:, None], block[None]
    clean_key, noisy_query = ~noisy[None], noisy[:, None]
    return torch.where(noisy_query, torch.where(clean_key, key < query, key == query), clean_key & (key <= query))


class Released:
    """The released code's approach, apart from its faults: the mask is the figure's, 1/t is clamped, gradients accumulate."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, shape: dict[str, Any], device: torch.device) -> None:
        self.spec, self.examples = spec_and_examples(shape)
        self.model, self.optimizer, self.shape, self.device = model, optimizer, shape, device

    def step(self, epoch: int) -> tuple[Tensor, int, int]:
        from bard_core.data.batches import collate

        prefix, response = self.shape["prefix"], self.shape["response"]
        self.optimizer.zero_grad(set_to_none=True)
        total, supervised, tokens = torch.zeros((), device=self.device), 0, 0
        for example in self.examples:
            batch = collate([(example, epoch)], self.spec)  # the same noise as ours
            ids = batch.input_ids_BL.to(self.device)
            mask = released_mask(prefix, response)[None, None].to(self.device)
            out = self.model.model(
                input_ids=ids, position_ids=batch.position_ids_CBL[0].to(self.device), attention_mask=mask, use_cache=False
            )
            logits = self.model.lm_head(out.last_hidden_state).float()
            where = batch.noisy
            supervised += where.index_P.numel()
            tokens += ids.numel()
            at = where.index_P.to(self.device)
            targets, t, loss_mask = (
                torch.zeros_like(ids[0]),
                torch.ones_like(ids[0], dtype=torch.float32),
                torch.zeros_like(ids[0]),
            )
            targets[at], t[at], loss_mask[at] = where.target_P.to(self.device), where.t_P.to(self.device), 1
            weighted = F.cross_entropy(logits[0], targets, reduction="none") / t.clamp(min=1e-3)
            loss = (weighted * loss_mask).sum() / response / len(self.examples)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return total, supervised, tokens


def measure(shape_name: str, way: str, steps: int) -> dict[str, Any]:
    """``steps`` timed steps (after an untimed one on a GPU, which compiles), and the process's peak memory."""
    from bard_core.training.throughput import shape_of, step_flops, utilisation

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    shape = SHAPES[shape_name]
    model = build(shape, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    worker = {"ours": Ours, "ours_dense": OursDense, "released": Released}[way](model, optimizer, shape, device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        float(worker.step(0)[0])
    started, supervised, tokens, losses = clock(), 0, 0, []
    for epoch in range(1, steps + 1):
        loss, taught, seen = worker.step(epoch)
        losses.append(loss)
        supervised, tokens = supervised + taught, tokens + seen
    values = torch.stack(losses).tolist()  # waits for the device
    seconds = clock() - started
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds_per_step": seconds / steps,
        "supervised_tokens_per_s": supervised / seconds,
        "tokens_per_s": tokens / seconds,
        "mfu": utilisation(step_flops(shape_of(model), tokens, supervised) / seconds, device, 1),
        "peak_memory_gib": peak / 2**30,
        "losses": values,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def compare(shape: str, repeats: int, steps: int) -> dict[str, Any]:
    """Alternate the two ways ``repeats`` times; the best speed and the highest memory of each, and their ratios."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            command = [sys.executable, __file__, "--measure", shape, way, "--steps", str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
            if done.returncode:
                raise SystemExit(f"{shape} {way} failed:\n{done.stderr[-3000:]}")
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
            result = runs[way][-1]
            speed, peak = result["supervised_tokens_per_s"], result["peak_memory_gib"]
            print(f"{shape:>5} {way:>9}: {speed:8.1f} supervised tokens/s, {peak:6.2f} GiB", flush=True)
    losses = [runs[way][0]["losses"] for way in WAYS]
    tolerance = 0.02 if torch.cuda.is_available() else 1e-3
    if any(max(step) - min(step) > tolerance * abs(max(step)) for step in zip(*losses, strict=True)):
        raise SystemExit(f"{shape}: the ways disagree on the loss, so their speeds mean nothing: {losses}")
    best = {way: max(run["supervised_tokens_per_s"] for run in runs[way]) for way in WAYS}
    peak = {way: max(run["peak_memory_gib"] for run in runs[way]) for way in WAYS}
    summary: dict[str, Any] = {"speed_ratio": best["ours"] / best["released"], "memory_ratio": peak["ours"] / peak["released"]}
    if "ours_dense" in best:
        summary |= {"sparse_over_dense": best["ours"] / best["ours_dense"], "mfu": max(run["mfu"] or 0.0 for run in runs["ours"])}
    print(
        f"{shape:>5}: {summary['speed_ratio']:.2f}x supervised tokens/s, {summary['memory_ratio']:.2f}x peak memory", flush=True
    )
    sizes = {name: SHAPES[shape][name] for name in ("prefix", "response", "samples")}
    return {"shape": SHAPES[shape]["model"], **sizes, "vocabulary": VOCABULARY, "block_size": BLOCK, **summary, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["tiny", "100m", "4b"] if torch.cuda.is_available() else ["tiny", "100m"]
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=default)
    parser.add_argument("--repeats", type=int, default=2, help="processes a way")
    parser.add_argument("--steps", type=int, default=2, help="timed steps a process")
    parser.add_argument("--measure", nargs=2, metavar=("SHAPE", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments.steps)))
        return
    from _machine import write

    results = {shape: compare(shape, arguments.repeats, arguments.steps) for shape in arguments.shapes}
    print(write("train", {"results": results}))


if __name__ == "__main__":
    main()
