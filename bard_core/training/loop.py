"""The one training loop. The objective is injected; a step's samples and noise depend on the step number alone.

There is no host sync inside a step: the loss is read, and tested for NaN, when it is logged.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bard_core.config import TrainConfig
from bard_core.data.batches import Batch, BatchSpec, Example, collate, step_samples
from bard_core.training import checkpoint
from bard_core.training.checkpoint import Run
from bard_core.training.images import ImageEncoder
from bard_core.training.interrupts import Interrupts, Stopped, Wish
from bard_core.training.objectives import Objective
from bard_core.training.optimizer import build_optimizer, schedule, set_rates
from bard_core.training.parallel import rank_and_world, sum_over_ranks

Record = dict[str, float]


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; names the step and the samples at fault."""


@dataclass
class _Window:
    """What happened since the last log line: tensors, read only when logged."""

    losses: list[Tensor] = field(default_factory=list)
    samples: list[list[str]] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def resume(self, losses: Sequence[float], device: torch.device) -> None:
        """Begin with what was lost at a checkpoint between two log lines, so that the curve is the undisturbed one."""
        self.losses = [torch.tensor(loss, device=device) for loss in losses]
        self.samples = [[] for _ in losses]


def train(
    objective: Objective,
    examples: Sequence[Example],
    encoder: ImageEncoder,
    config: TrainConfig,
    spec: BatchSpec,
    run: Run,
    device: torch.device,
    on_record: Callable[[Record], None],
    interrupts: Interrupts,
) -> str:
    """Train to ``config.steps`` from the newest complete checkpoint of the run, and return the final checkpoint's uri.

    ``on_record`` receives, on rank 0, {step, loss, lr, grad_norm, supervised_tokens_per_s} every ``config.log_every`` steps, with
    {train_s, checkpoint_blocked_s, checkpoint_write_s}: seconds since this start of the run began to train, how many of them it
    waited for checkpoints, and what the last one took behind it.

    Raises:
        TrainingDiverged: the loss is not finite.
        ValueError: the global batch is smaller than ranks x micro-batches.
        Stopped: the run was asked to stop, and its last step is in a checkpoint.
        CheckpointError: checkpoints cannot be written, or those in the run's folder are another run's.
    """
    rank, world = rank_and_world()
    if config.batch_size < world * config.accumulation:
        raise ValueError(
            f"batch_size {config.batch_size} must be at least workers x accumulation = {world * config.accumulation}"
        )
    optimizer = build_optimizer(objective.model, config.optimizer)
    checkpoint.sweep(run)
    step, found, wish, window = 0, checkpoint.latest_complete(run), Wish.NONE, _Window()
    if found is not None:
        step, notes = checkpoint.restore(found, objective, optimizer)
        window.resume(notes.get("window", []), device)
    writer = checkpoint.Writer(run, objective, optimizer)
    record: Record = {}
    started = time.perf_counter()
    objective.train()
    while step < config.steps and wish is not Wish.STOP:
        # What a model draws at random (dropout) follows from the step, so resuming needs no generator's state.
        torch.manual_seed((config.seed * 1_000_003 + step) * world + rank)
        set_rates(optimizer, schedule(step, config.steps, config.optimizer))
        picks = step_samples(len(examples), step, config.batch_size, config.seed)[rank::world]
        batches = [
            collate([(examples[i], epoch) for i, epoch in picks[part :: config.accumulation]], spec).to(device)
            for part in range(config.accumulation)
        ]
        loss, tokens, norm = train_step(objective, optimizer, batches, encoder, config, spec, world)
        window.losses.append(loss)
        window.tokens.append(tokens)
        window.samples.append([name for batch in batches for name in batch.sample_ids])
        step += 1
        if step % config.log_every == 0 or step == config.steps:
            record = _read(window, step, norm, optimizer)
            record |= {"train_s": time.perf_counter() - started, "checkpoint_blocked_s": writer.blocked_s}
            record["checkpoint_write_s"] = writer.write_s
            if rank == 0:
                on_record(record)
            window = _Window()
        wish = interrupts.poll()
        if step % config.checkpoint_every == 0 or step == config.steps or wish is not Wish.NONE:
            writer.save(step, {"loss": record.get("loss"), "window": _losses(window, step)})
    writer.close()
    if step < config.steps:
        raise Stopped(step)
    return run.checkpoint(step)


def train_step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    encoder: ImageEncoder,
    config: TrainConfig,
    spec: BatchSpec,
    world: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """One optimizer step over micro-batches: (global loss, global supervised tokens, gradient norm), all on the device.

    The loss is divided by the weight of the *global* batch, so neither the number of ranks nor of micro-batches changes it.
    """
    streams = [batch.clean if spec.block_size is None else batch.noisy for batch in batches]
    tokens = torch.stack([torch.tensor(float(stream.index_P.numel()), device=stream.index_P.device) for stream in streams]).sum()
    weight = torch.tensor(float(config.batch_size), device=tokens.device) if spec.sample_mean else tokens.clone()
    counts = sum_over_ranks(torch.stack([tokens, weight / world if spec.sample_mean else weight]))
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=tokens.device)
    for batch in batches:
        loss = objective(batch, encoder(batch.images, batch.grid_thw)).total
        # FSDP averages gradients over ranks, so the sum over ranks needs the factor back.
        (loss * (world / counts[1].clamp(min=1))).backward()
        total = total + loss.detach().float()
    norm = torch.nn.utils.clip_grad_norm_(
        [p for p in objective.parameters() if p.grad is not None], config.optimizer.max_grad_norm
    )
    optimizer.step()
    full_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return sum_over_ranks(total) / counts[1].clamp(min=1), counts[0], full_norm


def _losses(window: _Window, step: int) -> list[float]:
    """The window's losses on the host, tested: neither a log line nor a checkpoint hides a diverged run."""
    losses: list[float] = torch.stack(window.losses).tolist() if window.losses else []
    for back, loss in enumerate(reversed(losses)):
        if not math.isfinite(loss):
            guilty = window.samples[len(losses) - 1 - back]
            raise TrainingDiverged(f"loss is {loss} at step {step - back}; samples of that step on this rank: {guilty}")
    return losses


def _read(window: _Window, step: int, norm: Tensor, optimizer: torch.optim.Optimizer) -> Record:
    """Bring the window's tensors to the host."""
    losses = _losses(window, step)
    seconds = time.perf_counter() - window.started
    return {
        "step": step,
        "loss": sum(losses) / len(losses),
        "lr": optimizer.param_groups[0]["lr"],
        "grad_norm": float(norm),
        "supervised_tokens_per_s": float(torch.stack(window.tokens).sum()) / seconds,
    }
