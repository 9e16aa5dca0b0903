"""What a rank trains on: the walk over a dataset, cut into steps, laid into rows, shared out, and loaded ahead.

A micro-batch is a pure function of its number, so a run resumes with nothing but a step, and any number of loader processes give
the same batches. Around it stands a plain torch ``DataLoader``.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bard_core.data.batch import Batch
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.bins import Rows, share_out
from bard_core.data.examples import Example, Positions
from bard_core.data.fit import Fitted
from bard_core.data.order import Order
from bard_core.data.pictures import decode
from bard_core.data.reader import Reader
from bard_core.store.artifacts import ArtifactError
from bard_core.store.storage import StorageError


@dataclass(frozen=True)
class Walk:
    """The training samples in an endless order: ``walk[place]`` is a sample and how many times it was met before."""

    reader: Reader | Fitted
    seed: int
    positions: Positions

    @cached_property
    def order(self) -> Order:
        index, samples = self.reader.index, self.reader.samples
        return Order(index.unit[samples], index.repeat[samples], self.seed)

    def __getitem__(self, place: int) -> tuple[Example, int]:
        ((sample, draw),) = self.order.picks(place, place + 1)
        return self.read(sample), draw

    def read(self, sample: int) -> Example:
        """The reader's sample, with its positions."""
        example = self.reader[sample]
        example.position_ids_CN = self.positions(example.input_ids_N, example.grid_thw)
        return example

    def __reduce__(self) -> Any:
        return Walk, (self.reader, self.seed, self.positions)  # the order is as long as the dataset, and quickly made


@dataclass(frozen=True)
class MicroBatches(Dataset[Batch]):
    """Item i is the i-th micro-batch of one rank's run, ``parts`` a step of ``batch_size`` samples over all ranks.

    ``image_processor``: decode images here; None: whoever needs them will. ``steps``: of the run, whose last ones may have
    another noise.
    """

    walk: Walk
    spec: BatchSpec
    batch_size: int
    parts: int
    rank: int
    world: int
    image_processor: Any = None
    steps: int = 0

    def __getitem__(self, number: int) -> Batch:
        step, part = divmod(number, self.parts)
        noise = self.spec.noise
        later = noise.later if step >= noise.first_later_step(self.steps or step + 1) else None
        spec = self.spec.at(step)
        if later is not None:
            spec = replace(spec, noise=later)
        first = step * self.batch_size
        picks = self.walk.order.picks(first, first + self.batch_size)
        rows = self._shares(step, [sample for sample, _ in picks])[part][self.rank]
        chosen = [at for row in rows for at in row]
        examples = [(self.walk.read(picks[at][0]), picks[at][1]) for at in chosen]
        numbers = iter(range(len(chosen)))
        batch = collate(examples, spec, rows=[[next(numbers) for _ in row] for row in rows])
        decoded = None
        if self.image_processor is not None and batch.images:
            decoded = decode(self.image_processor, batch.images, batch.grid_thw)
        return replace(batch, places=[first + at for at in chosen], patches=decoded, noise=None if later is None else later.name)

    def _shares(self, step: int, samples: list[int]) -> list[list[Rows]]:
        lengths = self._lengths[samples].tolist()
        return share_out(lengths, self.spec.max_tokens_per_row, self.world, self.parts)

    @cached_property
    def _lengths(self) -> Any:
        reader = self.walk.reader
        laid_out = reader.index.laid_out(self.spec.block_size, self.spec.copies)[reader.samples]
        return np.minimum(laid_out, self.spec.max_tokens_per_row)  # a longer one was cut to that (``data.fit``)

    def __reduce__(self) -> Any:
        return MicroBatches, tuple(getattr(self, name) for name in self.__dataclass_fields__)


def steps(batches: MicroBatches, first: int, last: int, workers: int, pin: bool) -> Generator[list[Batch], None, None]:
    """The micro-batches of the steps [first, last), loaded ahead by ``workers`` processes, or here and now without any.

    Args:
        pin: put tensors into pinned memory, for a GPU.
    """
    parts = batches.parts
    loader: DataLoader[Batch] = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first * parts, last * parts),
        num_workers=workers,
        pin_memory=pin,
        multiprocessing_context=_context(batches) if workers else None,
        worker_init_fn=_start_worker if workers else None,
        generator=torch.Generator(),  # else the loader would draw from the one that training draws from
    )
    with _units_ahead(batches, first) as reached:
        loaded = iter(loader)
        for step in range(first, last):
            reached(step)
            yield [next(loaded) for _ in range(parts)]


def _context(batches: MicroBatches) -> Any:
    """Processes from a server that knows neither our GPU nor our sockets, and has done the imports."""
    modeling = type(batches.walk.positions.config).__module__.replace("configuration_", "modeling_")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__, modeling, type(batches.image_processor).__module__])
    return context


def _start_worker(number: int) -> None:
    """One thread each, and no life without the rank."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def _units_ahead(batches: MicroBatches, first: int) -> Iterator[Callable[[int], None]]:
    """Fetch the units of the window that training is in, and of the next one, behind its back. Call the value with each step."""
    order, units, size = batches.walk.order, batches.walk.reader.units, batches.batch_size
    moved, now, over = threading.Condition(), [first * size], threading.Event()

    def fetch() -> None:
        previous = 0
        for start, wanted in order.units_ahead(first * size):
            with moved:
                moved.wait_for(lambda: over.is_set() or now[0] >= previous)  # noqa: B023 (called in this round of the loop)
            for unit in wanted:
                if over.is_set():
                    return
                with contextlib.suppress(ArtifactError, StorageError):  # who reads it will say so
                    units.fetch(unit)
            previous = start

    def reached(step: int) -> None:
        with moved:
            now[0] = step * size
            moved.notify()

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    try:
        yield reached
    finally:
        over.set()
        reached(first)
        thread.join(timeout=1.0)
