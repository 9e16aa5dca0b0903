"""Two steps of a model of 100 M parameters on one rank, in a process of its own; ``peaks_on`` runs this file on every rank.

What is told is the most that torch's allocator held, as the profiler heard of every allocation and release.
"""

import tempfile

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3Config, Qwen3ForCausalLM

from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.train import OptimizerConfig, TrainConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example, attach_positions
from bard_core.training.loop import train_step
from bard_core.training.objectives import ProgressiveBlockMerging
from bard_core.training.optimizer import build_optimizer
from bard_core.training.parallel import shard, use_activation_checkpointing

VOCABULARY, MASK, END = 16384, 16000, 16001
PROMPT, ANSWER, SAMPLES = 128, 128, 8
SPEC = BatchSpec(8, NoiseConfig(), MASK, END, 0, torch.arange(1, 1000), max_tokens_per_row=PROMPT + 2 * ANSWER)


def shape():
    return Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=640, intermediate_size=2432, num_hidden_layers=14, num_attention_heads=16,
        num_key_value_heads=4, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip


def config_of(accumulation, checkpointing):
    return TrainConfig(
        steps=2, batch_size=SAMPLES, accumulation=accumulation, precision="float32", optimizer=OptimizerConfig(),
        activation_checkpointing=checkpointing, max_tokens_per_row=PROMPT + 2 * ANSWER,
    )  # fmt: skip


def steps(rank, world, config):
    """Build, shard and train as a stage does."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(shape())
    mine = [
        Example(str(n), torch.randint(1, 1000, (PROMPT + ANSWER,)), [(PROMPT, PROMPT + ANSWER)], [], []) for n in range(SAMPLES)
    ]
    attach_positions(mine, model)
    mine = mine[rank::world]
    if config.activation_checkpointing:
        use_activation_checkpointing(model)
    objective = ProgressiveBlockMerging(model, "block", "mask", 0.0).train()
    shard(objective, model, config.precision, torch.device("cpu"), False)
    optimizer, parts = build_optimizer(model, config.optimizer), config.accumulation
    for step in range(config.steps):
        batches = [collate([(example, step) for example in mine[part::parts]], SPEC) for part in range(parts)]
        train_step(objective, optimizer, batches, lambda *_: None, config, SPEC, world)


def peak(*given):
    """Bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as heard:
        steps(*given)
    changes = [event for event in heard.profiler.kineto_results.events() if event.name() == "[memory]"]
    held, most = 0, 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def peaks_on(world, config):
    """The peak of every rank."""
    from .workers import on_ranks

    with tempfile.TemporaryDirectory() as folder:
        on_ranks(__file__, world, timeout_s=400.0, folder=folder, config=config.model_dump_json())
        return [torch.load(f"{folder}/{rank}", weights_only=True) for rank in range(world)]


if __name__ == "rank":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)  # noqa: F821
    torch.save(peak(rank, world, TrainConfig.model_validate_json(config)), f"{folder}/{rank}")  # noqa: F821
    dist.destroy_process_group()
