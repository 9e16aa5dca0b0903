"""What a training run costs in FLOPs, counted from its samples' lengths: forwards, backwards, and the teacher's forwards."""

from typing import Any

from bard_core.data.batches import noisy_copies
from bard_core.data.index import Index
from bard_core.models import load
from bard_core.store import artifacts
from bard_core.store.refs import ModelRef
from bard_core.training.spec import StageSpec
from bard_core.training.throughput import Shape, forward_flops, shape_of


def training_flops(spec: StageSpec, trained: ModelRef) -> float:
    """FLOPs of a run's steps: 3 forwards of the model a sample, noisy copies and tails included, and one of the teacher.

    Attention is counted over the sample's own length. The vision side is left out: it is the same for all, and frozen in the lab.
    """
    index = Index.open(artifacts.fetch(spec.dataset))
    shape = shape_of(load(artifacts.fetch(trained)))
    teacher = shape_of(load(artifacts.fetch(spec.teacher))) if spec.teacher else None
    parts = [_sample(index, spec, sizes, shape, teacher) for sizes in _parts(spec)]
    return spec.train.steps * spec.train.batch_size * sum(parts) / len(parts)


def _parts(spec: StageSpec) -> list[tuple[int | None, ...]]:
    """Block sizes drawn alike, in equal parts of a run."""
    if spec.stage == "source":
        return [(None,)]
    sizes = spec.block_sizes or (spec.block_size,)
    return [sizes[: end + 1] for end in range(len(sizes))] if spec.draw == "growing" else [sizes]


def _sample(index: Index, spec: StageSpec, sizes: tuple[int | None, ...], shape: Shape, teacher: Shape | None) -> float:
    """FLOPs of a mean training sample, over equally likely block sizes."""
    clean = index.tokens[index.train].astype(float)
    costs: list[Any] = []
    for size in sizes:
        copies = noisy_copies(size, spec.noise)
        tokens = index.laid_out(size, copies)[index.train].astype(float)
        # Masked positions alone reach the head; other noises supervise all. Complementary copies mask each position once.
        level = spec.noise.min_t + (spec.noise.max_t - spec.noise.min_t) / (1 + spec.noise.t_power)
        masked = level if spec.noise.name == "mask" and copies == 1 else 1 / max(copies, 1)
        answers = index.laid_out(1, 1)[index.train] - clean
        supervised = (tokens - clean) * masked + (answers if size is None or spec.ar_weight else 0.0)
        mean, heads = float(tokens.mean()), float(supervised.mean())
        forward = 3.0 * forward_flops(shape, mean, heads, mean)
        costs.append(forward + (forward_flops(teacher, mean, heads, mean) if teacher else 0.0))
    return float(sum(costs) / len(costs))
