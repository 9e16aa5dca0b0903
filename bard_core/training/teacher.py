"""The frozen teacher of distillation: asked in every step, or asked once and read from storage ever after.

What the teacher says depends on the sample, its epoch, the noise and its seed, and the teacher, and on nothing of the student's
training; so it can be kept. A shard holds the answers for 256 consecutive places of the walk over the data
(``data.examples.step_samples``) and is an artifact of its own: a longer run adds shards, a run with another learning rate or
another weight of the KL reads those that are there.

Shape suffixes: P supervised positions, K top tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bard_core.data.batches import Batch, BatchSpec, collate
from bard_core.data.examples import Example, step_samples
from bard_core.diffusion.names import CleanAttention
from bard_core.models.attention import hidden_states, training_attention
from bard_core.store import artifacts, storage
from bard_core.training.head import chunk_rows
from bard_core.training.images import ImageEncoder
from bard_core.training.ranks import barrier, rank_and_world

SHARD_SAMPLES = 256
SAMPLES_A_FORWARD = 8
TopK = tuple[Tensor, Tensor]  # indices and logits, each [P, K], at a batch's noisy supervised positions
Teacher = Callable[[Batch], TopK]


class OnlineTeacher:
    """Runs the teacher on every batch, under its own block size and the student's noise.

    Args:
        encoder: of the teacher's images; the student's own where it is frozen and the vision sides are the same.
    """

    def __init__(self, model: Any, clean_attention: CleanAttention, top_k: int, encoder: ImageEncoder) -> None:
        self.model = model.requires_grad_(False).eval()
        self.clean_attention, self.top_k, self.encoder = clean_attention, top_k, encoder

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TopK:
        if batch.teacher_table_BL is None:
            raise ValueError("distillation needs batches with a teacher table: set BatchSpec.teacher_block_size")
        images = self.encoder(batch.images, batch.grid_thw)
        mask = training_attention(batch.teacher_table_BL, self.clean_attention)
        hidden_BLD = hidden_states(self.model, batch.input_ids_BL, batch.position_ids_CBL, mask, images)
        head = self.model.get_output_embeddings()
        rows = chunk_rows(head.weight.shape[0], hidden_BLD.device)
        hidden_PD = hidden_BLD.flatten(0, 1)[batch.noisy.index_P]
        tops = [head(piece).float().topk(self.top_k) for piece in hidden_PD.split(rows)]
        return torch.cat([top.indices for top in tops]), torch.cat([top.values for top in tops])


class StoredTeacher:
    """Reads the answers kept below ``uri``, a shard at a time.

    Args:
        seed: of the walk over the data, as in ``step_samples``.

    Raises:
        ArtifactError: when called, if a shard is missing or damaged: run ``precompute`` again.
    """

    def __init__(self, uri: str, examples: Sequence[Example], seed: int) -> None:
        self.uri, self.seed = uri, seed
        self._index = {example.id: i for i, example in enumerate(examples)}
        self._walk: dict[int, Tensor] = {}  # epoch -> place of every example
        self._shards: dict[int, dict[tuple[str, int], TopK]] = {}

    def __call__(self, batch: Batch) -> TopK:
        found = [self._answer(key) for key in zip(batch.sample_ids, batch.epochs, strict=True)]
        device = batch.noisy.index_P.device
        indices, logits = (torch.cat(parts).to(device, non_blocking=True) for parts in zip(*found, strict=True))
        return indices.long(), logits

    def _answer(self, key: tuple[str, int]) -> TopK:
        name, epoch = key
        if epoch not in self._walk:
            order = torch.tensor([i for i, _ in step_samples(len(self._index), epoch, len(self._index), self.seed)])
            self._walk = {epoch: order.argsort()} | dict(list(self._walk.items())[-1:])
        shard = (epoch * len(self._index) + int(self._walk[epoch][self._index[name]])) // SHARD_SAMPLES
        if shard not in self._shards:
            self._shards = {shard: self._load(shard)} | dict(list(self._shards.items())[:3])
        return self._shards[shard][key]

    def _load(self, shard: int) -> dict[tuple[str, int], TopK]:
        uri = shard_uri(self.uri, shard)
        samples = artifacts.read_manifest(uri).metadata["samples"]
        tensors = load_file(artifacts.fetch(uri) / "topk.safetensors")
        parts = [tensors[name].split(tensors["counts"].tolist()) for name in ("indices", "logits")]
        return {(name, epoch): answer for (name, epoch), answer in zip(samples, zip(*parts, strict=True), strict=True)}


def shard_uri(uri: str, shard: int) -> str:
    return storage.join(uri, f"shard-{shard:06d}")


def precompute(
    uri: str,
    samples: int,
    examples: Sequence[Example],
    spec: BatchSpec,
    teacher: Callable[[], Teacher],
    device: torch.device,
) -> StoredTeacher:
    """Ask the teacher, once, about the first ``samples`` places of the walk; ranks share the shards, and make those anew that
    are not there or are damaged.

    Args:
        uri: where the shards go; must name all that the answers depend on. teacher: called only when a shard is missing.
    """
    rank, world = rank_and_world()
    wanted = range(-(-samples // SHARD_SAMPLES))
    missing = [shard for shard in wanted[rank::world] if artifacts.standing(shard_uri(uri, shard)) is None]
    answering = teacher() if missing else None
    for shard in missing:
        assert answering is not None
        _write_shard(shard_uri(uri, shard), shard, examples, spec, answering, device)
    barrier()
    return StoredTeacher(uri, examples, spec.seed)


def _write_shard(
    uri: str,
    shard: int,
    examples: Sequence[Example],
    spec: BatchSpec,
    teacher: Teacher,
    device: torch.device,
) -> None:
    """Answers for one shard's samples, in the order of each sample's supervised positions."""
    picks = step_samples(len(examples), shard, SHARD_SAMPLES, spec.seed)
    indices, logits, counts = [], [], []
    for start in range(0, len(picks), SAMPLES_A_FORWARD):
        some = picks[start : start + SAMPLES_A_FORWARD]
        batch = collate([(examples[i], epoch) for i, epoch in some], spec)
        counts.append(batch.noisy.sample_P.bincount(minlength=len(some)))
        top = teacher(batch.to(device))
        indices.append(top[0].to("cpu", torch.int32))
        logits.append(top[1].to("cpu", torch.float32))
    with storage.scratch("teacher") as scratch:
        tensors = {"indices": torch.cat(indices), "logits": torch.cat(logits), "counts": torch.cat(counts)}
        staging = scratch / "shard"
        staging.mkdir()
        save_file(tensors, staging / "topk.safetensors")
        names = [[examples[i].id, epoch] for i, epoch in picks]
        artifacts.commit_directory(staging, uri, kind="teacher", metadata={"samples": names})
