"""The one training loop. The objective is injected; a step's samples and noise depend on the step number alone.

There is no host sync inside a step: the loss is read, and tested for NaN, when it is logged.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bard_core.config.sections.train import TrainConfig
from bard_core.data.batch import Batch
from bard_core.data.batches import BatchSpec
from bard_core.data.feed import MicroBatches, steps
from bard_core.diffusion.layout import PADDING
from bard_core.store.claims import ClaimLostError
from bard_core.training.checkpoints.writer import Run, Writer, latest_complete, restore, sweep
from bard_core.training.curve import Record
from bard_core.training.images import ImageEncoder
from bard_core.training.interrupts import Interrupts, Stopped, Wish
from bard_core.training.objectives import CLEAN_PARTS, Objective
from bard_core.training.optimizer import build_optimizer, schedule, set_rates
from bard_core.training.parallel import mixed_precision, reduce_at
from bard_core.training.ranks import rank_and_world, sum_over_ranks
from bard_core.training.throughput import peak_memory_gib, shape_of, step_flops, utilisation


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; names the step and the samples at fault."""


class OutOfMemory(RuntimeError):
    """Memory ran out in a step: names its rows and samples."""


@dataclass
class _Window:
    """What happened since the last log line: tensors, read only when logged.

    ``before`` are losses of steps ahead of the checkpoint that a run resumed from, so that the curve is the undisturbed one.
    """

    before: list[dict[str, float]] = field(default_factory=list)
    steps: list["Step"] = field(default_factory=list)
    samples: list[list[str]] = field(default_factory=list)
    waited_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)


class Step(NamedTuple):
    """One optimizer step over all ranks, on the device: the loss ("loss") and its parts by name, supervised and all tokens,
    gradient norm; this rank's samples' shares of the loss."""

    losses: dict[str, Tensor]
    supervised: Tensor
    tokens: Tensor
    norm: Tensor
    samples_S: Tensor


def train(
    objective: Objective,
    data: MicroBatches,
    encoder: ImageEncoder,
    config: TrainConfig,
    run: Run,
    device: torch.device,
    on_record: Callable[[Record], None],
    interrupts: Interrupts,
    data_workers: int = 0,
    validate: Callable[[Objective], Record] | None = None,
) -> str:
    """Train to ``config.steps`` from the newest complete checkpoint of the run, and return the final checkpoint's uri.

    ``on_record`` receives, on rank 0, every ``config.log_every`` steps, {step, loss, lr, grad_norm, supervised_tokens_per_s,
    data_wait, peak_memory_gib}, the loss's parts by name (see ``training.objectives``) and, on known GPUs, mfu; with
    {train_s, checkpoint_blocked_s, checkpoint_write_s}: seconds since this start of the run began to train, how many of them it
    waited for checkpoints, and what the last one took behind it. ``data_wait`` is the share of the time that rank 0 waited for
    its batches, which ``data_workers`` processes load ahead. What ``validate`` finds every ``config.validate_every`` steps,
    and at the end, is added.

    Raises:
        TrainingDiverged: the loss is not finite. OutOfMemory: a step's rows do not fit.
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
    sweep(run)
    step, found, wish, window = 0, latest_complete(run), Wish.NONE, _Window()
    if found is not None:
        step, notes = restore(found, objective, optimizer)
        window.before = list(notes.get("window", []))
    writer = Writer(run, objective, optimizer)
    record: Record = {}
    started = time.perf_counter()
    objective.train()
    ahead = steps(data, step, config.steps, data_workers, pin=device.type == "cuda")
    while step < config.steps and wish < Wish.STOP:
        # What a model draws at random (dropout) follows from the step, so resuming needs no generator's state.
        torch.manual_seed((config.seed * 1_000_003 + step) * world + rank)
        set_rates(optimizer, *schedule(step, config.steps, config.optimizer))
        asked = time.perf_counter()
        batches = [batch.to(device) for batch in next(ahead)]
        window.waited_s += time.perf_counter() - asked
        with _naming_samples(step, batches):
            window.steps.append(train_step(objective, optimizer, batches, encoder, config, data.spec, world))
        window.samples.append([name for batch in batches for name in batch.sample_ids])
        step += 1
        if step % config.log_every == 0 or step == config.steps:
            record = _read(window, step, objective, optimizer, device)
            if validate is not None and (step % (config.validate_every or step) == 0 or step == config.steps):
                record |= validate(objective)
            record |= {"train_s": time.perf_counter() - started, "checkpoint_blocked_s": writer.blocked_s}
            record["checkpoint_write_s"] = writer.write_s
            if rank == 0:
                on_record(record)
            window = _Window()
        wish = interrupts.poll()
        if wish is Wish.LEAVE:
            raise ClaimLostError(f"{run.uri}: another driver has taken over this run at step {step}; leaving it to that one")
        if step % config.checkpoint_every == 0 or step == config.steps or wish is not Wish.NONE:
            looked = {"val_loss": record["val_loss"]} if record.get("step") == step and "val_loss" in record else {}
            scale = {} if config.lora is None else {"lora_scale": config.lora.scale}  # what consolidation merges by
            writer.save(step, {"loss": record.get("loss"), **looked, **scale, "window": _losses(window, step)})
    ahead.close()
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
) -> Step:
    """One optimizer step over micro-batches.

    Each stream's loss is divided by its weight in the *global* batch (samples, or supervised positions of that stream), so
    neither ranks nor micro-batches change it.
    """
    device = batches[0].input_ids_BL.device
    clean_count = sum(batch.clean.index_P.numel() for batch in batches)
    count = clean_count if spec.block_size is None else sum(batch.noisy.index_P.numel() for batch in batches)
    supervised, clean = (torch.full((), float(number), device=device) for number in (count, clean_count))
    tokens = torch.stack([(batch.table_BL.role != PADDING).sum() for batch in batches]).sum().float()
    supervised, clean, tokens = sum_over_ranks(torch.stack([supervised, clean, tokens])).unbind()
    if spec.reduction == "sample_mean":
        weight = clean_weight = torch.full((), float(config.batch_size), device=device)
    else:
        weight, clean_weight = supervised.clamp(min=1), clean.clamp(min=1)
    optimizer.zero_grad(set_to_none=True)
    names = list(objective.shares)
    sums, samples = torch.zeros(1 + len(names), device=device), []
    divisors = torch.stack([torch.ones_like(weight), *(clean_weight if name in CLEAN_PARTS else weight for name in names)])
    for batch in batches:
        reduce_at(objective, last=batch is batches[-1])
        with mixed_precision(config.precision, device):
            loss = objective(batch, encoder(batch.images, batch.grid_thw, batch.patches))
        streams = ((loss.noisy, weight), (loss.clean, clean_weight))
        mean = torch.stack([stream / divisor for stream, divisor in streams if stream is not None]).sum()
        (mean * world).backward()  # FSDP averages gradients over ranks; the sum over ranks needs the factor back
        sums += torch.stack([mean.detach(), *(loss.parts[name] for name in names)]).float() / divisors
        samples.append(loss.samples_S)
    norm = torch.nn.utils.clip_grad_norm_(
        [p for p in objective.parameters() if p.grad is not None], config.optimizer.max_grad_norm
    )
    optimizer.step()
    full_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    losses = dict(zip(["loss", *names], sum_over_ranks(sums).unbind(), strict=True))
    return Step(losses, supervised, tokens, full_norm, torch.cat(samples))


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def _naming_samples(step: int, batches: Sequence[Batch]) -> Iterator[None]:
    """Where memory runs out, say over which samples."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in OUT_OF_MEMORY):
            raise
        rows = ", ".join(f"{batch.input_ids_BL.shape[0]} x {batch.input_ids_BL.shape[1]}" for batch in batches)
        names = [name for batch in batches for name in batch.sample_ids]
        raise OutOfMemory(
            f"memory ran out at step {step + 1} over rows of {rows} tokens, samples {names} ({str(error).splitlines()[:1]}); "
            "raise train.accumulation, lower train.max_tokens_per_row, or set train.activation_checkpointing"
        ) from error


def _losses(window: _Window, step: int) -> list[dict[str, float]]:
    """The window's losses on the host, tested: neither a log line nor a checkpoint hides a diverged run."""
    table = torch.stack([torch.stack([*done.losses.values()]) for done in window.steps]).tolist() if window.steps else []
    losses = [dict(zip(done.losses, row, strict=True)) for done, row in zip(window.steps, table, strict=True)]
    for back, loss in enumerate(row["loss"] for row in reversed(losses)):
        if not math.isfinite(loss):
            shares = window.steps[-1 - back].samples_S.tolist()
            guilty = [name for name, share in zip(window.samples[-1 - back], shares, strict=True) if not math.isfinite(share)]
            raise TrainingDiverged(
                f"loss is {loss} at step {step - back}; samples of this rank whose own loss is not finite: {guilty or 'none'}. "
                "A few: look at their images and texts; all: the weights diverged, lower the learning rate"
            )
    return window.before + losses


def _read(window: _Window, step: int, objective: Objective, optimizer: torch.optim.Optimizer, device: torch.device) -> Record:
    """Bring the window's tensors to the host."""
    losses = _losses(window, step)
    seconds = time.perf_counter() - window.started
    supervised = float(torch.stack([done.supervised for done in window.steps]).sum())
    tokens = float(torch.stack([done.tokens for done in window.steps]).sum())
    model = objective.model
    mfu = utilisation(step_flops(shape_of(model), tokens, supervised) / seconds, device, rank_and_world()[1])
    return {
        "step": step,
        **{name: sum(row[name] for row in losses) / len(losses) for name in losses[0]},
        "lr": optimizer.param_groups[0]["lr"],
        "grad_norm": float(window.steps[-1].norm),
        "supervised_tokens_per_s": supervised / seconds,
        "data_wait": window.waited_s / seconds,
        "peak_memory_gib": peak_memory_gib(device),
        **({} if mfu is None else {"mfu": mfu}),
    }
