"""Loss and gradients do not depend on how a step's samples are divided over workers and micro-batches."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.config.sections.train import OptimizerConfig, TrainConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.training import loop
from bard_core.training.objectives import Autoregressive, ProgressiveBlockMerging, StageWiseDistillation
from bard_core.training.optimizer import build_optimizer
from bard_core.training.teacher import OnlineTeacher

from .test_step import EOS, MASK, examples_for, tiny_model

SAMPLES = 6
UNCLIPPED = OptimizerConfig(lr=1e-12, max_grad_norm=1e12)


@st.composite
def divisions(draw):
    """The samples of every [worker][micro-batch], none empty; as many micro-batches on each worker."""
    workers = draw(st.integers(1, 3))
    parts = draw(st.integers(1, SAMPLES // workers))
    order = draw(st.permutations(range(SAMPLES)))
    cells = [[order[worker * parts + part]] for worker in range(workers) for part in range(parts)]
    for sample in order[workers * parts :]:
        cells[draw(st.integers(0, len(cells) - 1))].append(sample)
    return [cells[worker * parts : (worker + 1) * parts] for worker in range(workers)]


def objective_of(kind, model):
    if kind == "ar":
        return Autoregressive(model)
    if kind == "swd":
        teacher = OnlineTeacher(tiny_model(), "causal", 5, lambda *_: None)
        config = SWDConfig(train=TrainConfig(steps=1))
        return StageWiseDistillation(model, "causal", teacher, config, 0.5)
    return ProgressiveBlockMerging(model, "causal", kind, 0.5)


class Workers:
    """Workers as threads, so that one process tries many divisions: a sum over ranks waits for all of them, as an all-reduce."""

    def __init__(self, count):
        self.barrier, self.mine, self.given = threading.Barrier(count, timeout=60), threading.local(), [None] * count

    def sum(self, value):
        self.given[self.mine.rank] = value.clone()
        self.barrier.wait()
        total = torch.stack(self.given).sum(0)
        self.barrier.wait()
        return value.copy_(total)

    def run(self, rank, step, results):
        self.mine.rank = rank
        try:
            results[rank] = step(rank)
        except BaseException:
            self.barrier.abort()
            raise


def step_of(kind, reduction, division, complementary):
    """One step over a division: its losses, and the gradient as FSDP reduces it, the mean over workers."""
    spec = BatchSpec(
        None if kind == "ar" else 8,
        NoiseConfig(name="mask" if kind in ("ar", "swd") else kind, min_t=0.2, complementary=complementary and kind == "mask"),
        MASK,
        EOS,
        0,
        torch.arange(1, 490),
        reduction,
        sample_length="supervised" if kind == "swd" else "padded",
        teacher_block_size=4 if kind == "swd" else None,
        max_tokens_per_row=200,
    )
    world = len(division)
    config = TrainConfig(steps=1, batch_size=SAMPLES, accumulation=len(division[0]), precision="float32", optimizer=UNCLIPPED)
    workers, results = Workers(world), [None] * world

    objectives = [objective_of(kind, tiny_model()) for _ in range(world)]  # before the threads: seeding is not theirs alone
    examples = examples_for(objectives[0].model, SAMPLES)

    def step(rank):
        objective, model = objectives[rank], objectives[rank].model
        batches = [collate([(examples[i], 0) for i in cell], spec) for cell in division[rank]]
        done = loop.train_step(objective, build_optimizer(model, UNCLIPPED), batches, lambda *_: None, config, spec, world)
        return {k: float(v) for k, v in done.losses.items()}, torch.cat([p.grad.flatten() for p in model.parameters()])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "sum_over_ranks", workers.sum)
        threads = [threading.Thread(target=workers.run, args=(rank, step, results)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    losses = [losses for losses, _ in results]
    assert all(other == losses[0] for other in losses)
    return losses[0], torch.stack([gradient for _, gradient in results]).mean(0)


WHOLE = {}


@pytest.mark.parametrize("reduction", ["sample_mean", "token_mean"])
@pytest.mark.parametrize("kind", ["ar", "mask", "uniform", "edit", "mix", "swd"])
@settings(max_examples=6, deadline=None)
@given(division=divisions(), complementary=st.booleans())
def test_any_division_is_the_whole(kind, reduction, division, complementary):
    key = (kind, reduction, complementary)
    if key not in WHOLE:
        WHOLE[key] = step_of(kind, reduction, [[list(range(SAMPLES))]], complementary)
    losses, gradient = step_of(kind, reduction, division, complementary)
    whole, whole_gradient = WHOLE[key]
    assert losses == pytest.approx(whole, rel=1e-5)
    assert torch.allclose(gradient, whole_gradient, rtol=1e-4, atol=1e-5 * float(whole_gradient.abs().max()))
