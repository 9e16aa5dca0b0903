"""The frozen teacher of distillation: asked in every step, or asked once and read from storage ever after.

What the teacher says depends on the sample, its epoch, the noise and its seed, and the teacher, and on nothing of the student's
training; so it can be kept. A shard holds the answers for 256 consecutive places of the walk over the data
(``data.feed.Walk``) and is an artifact of its own: a longer run adds shards, a run with another learning rate or
another weight of the KL reads those that are there.

Shape suffixes: P supervised positions, K top tokens.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bard_core.data.batch import Batch
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example
from bard_core.diffusion.layout import CLEAN
from bard_core.diffusion.names import TrainedAttention
from bard_core.models.attention import hidden_states, training_attention
from bard_core.store import artifacts, storage, workshop
from bard_core.training.head import chunk_rows
from bard_core.training.images import ImageEncoder
from bard_core.training.ranks import barrier, rank_and_world

SHARD_SAMPLES = 256
SAMPLES_A_FORWARD = 8
TopK = tuple[Tensor, Tensor]  # indices and logits, each [P, K], at a batch's noisy supervised positions
Teacher = Callable[[Batch], TopK]


class Places(Protocol):
    """The walk: the sample at a place, with positions, and how many times it was met before."""

    def __getitem__(self, place: int, /) -> tuple[Example, int]: ...


class OnlineTeacher:
    """Runs the teacher on every batch, under its own block size, mask and mask token, and the student's noise.

    Args:
        encoder: of the teacher's images; the student's own where it is frozen and the vision sides are the same.
        masks: the mask tokens of the student's batches and of the teacher; None: one and the same.
        vocabulary: tokens that the student has; the teacher may have more rows, and names none of them.
        autoregressive: it says what comes at a noisy position from the clean tokens before it, and sees no mask.
    """

    def __init__(
        self,
        model: Any,
        clean_attention: TrainedAttention,
        top_k: int,
        encoder: ImageEncoder,
        masks: tuple[int, int] | None = None,
        vocabulary: int | None = None,
        autoregressive: bool = False,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.clean_attention, self.top_k, self.encoder = clean_attention, top_k, encoder
        self.masks, self.vocabulary, self.autoregressive = masks, vocabulary, autoregressive

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TopK:
        if batch.teacher_table_BL is None:
            raise ValueError("distillation needs batches with a teacher table: set BatchSpec.teacher_block_size")
        images = self.encoder(batch.images, batch.grid_thw, batch.patches)
        mask = training_attention(batch.teacher_table_BL, self.clean_attention)
        ids_BL = batch.input_ids_BL
        if self.masks is not None:
            ids_BL = torch.where(ids_BL == self.masks[0], self.masks[1], ids_BL)
        hidden_BLD = hidden_states(self.model, ids_BL, batch.position_ids_CBL, mask, images, batch.image_at_T)
        head = self.model.get_output_embeddings()
        rows = chunk_rows(head.weight.shape[0], hidden_BLD.device)
        places_P = token_before(batch) if self.autoregressive else batch.noisy.index_P
        hidden_PD = hidden_BLD.flatten(0, 1)[places_P]
        tops = [head(piece)[:, : self.vocabulary].float().topk(self.top_k) for piece in hidden_PD.split(rows)]
        return torch.cat([top.indices for top in tops]), torch.cat([top.values for top in tops])


def token_before(batch: Batch) -> Tensor:
    """Where the clean token stands that comes before each noisy supervised position [P].

    Past a turn's end it is any token: an autoregressive teacher, of blocks of 1, has no block there.
    """
    table = batch.table_BL
    sample, position, role = table.sample.flatten(), table.position.flatten(), table.role.flatten()
    first = ((role == CLEAN) & (position == 0)).nonzero().squeeze(-1)
    start_S = torch.empty(len(batch.sample_ids), dtype=torch.long, device=first.device)
    start_S[sample[first]] = first
    at_P = batch.noisy.index_P
    return (start_S[sample[at_P]] + position[at_P] - 1).clamp(max=role.numel() - 1)


class StoredTeacher:
    """Reads the answers kept below ``uri``, a shard at a time.

    Raises:
        ArtifactError: when called, if a shard is missing or damaged, or is of another walk: run ``precompute`` again.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._shards: dict[int, list[tuple[str, TopK]]] = {}

    def __call__(self, batch: Batch) -> TopK:
        found = [self._answer(place, name) for place, name in zip(batch.places, batch.sample_ids, strict=True)]
        device = batch.noisy.index_P.device
        indices, logits = (torch.cat(parts).to(device, non_blocking=True) for parts in zip(*found, strict=True))
        return indices.long(), logits

    def _answer(self, place: int, sample: str) -> TopK:
        shard, at = divmod(place, SHARD_SAMPLES)
        if shard not in self._shards:
            self._shards = {shard: self._load(shard)} | dict(list(self._shards.items())[:3])
        name, answer = self._shards[shard][at]
        if name != sample:
            raise artifacts.ArtifactError(
                f"{shard_uri(self.uri, shard)} answers {name} at place {place}, not {sample}; delete it"
            )
        return answer

    def _load(self, shard: int) -> list[tuple[str, TopK]]:
        uri = shard_uri(self.uri, shard)
        samples = artifacts.read_manifest(uri).metadata["samples"]
        tensors = load_file(artifacts.fetch(uri) / "topk.safetensors")
        indices, logits = (tensors[name].split(tensors["counts"].tolist()) for name in ("indices", "logits"))
        return list(zip(samples, zip(indices, logits, strict=True), strict=True))


def shard_uri(uri: str, shard: int) -> str:
    return storage.join(uri, f"shard-{shard:06d}")


def precompute(
    uri: str,
    samples: int,
    walk: Places,
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
        _write_shard(shard_uri(uri, shard), shard, walk, spec, answering, device)
    barrier()
    return StoredTeacher(uri)


def _write_shard(
    uri: str,
    shard: int,
    walk: Places,
    spec: BatchSpec,
    teacher: Teacher,
    device: torch.device,
) -> None:
    """Answers for one shard's samples, in the order of each sample's supervised positions."""
    places = range(shard * SHARD_SAMPLES, (shard + 1) * SHARD_SAMPLES)
    names, indices, logits, counts = [], [], [], []
    for start in places[::SAMPLES_A_FORWARD]:
        some = places[start - places[0] :][:SAMPLES_A_FORWARD]
        batch = replace(collate([walk[place] for place in some], spec), places=some)
        names += batch.sample_ids
        counts.append(batch.noisy.sample_P.bincount(minlength=len(some)))
        top = teacher(batch.to(device))
        indices.append(top[0].to("cpu", torch.int32))
        logits.append(top[1].to("cpu", torch.float32))
    with workshop.scratch("teacher") as scratch:
        tensors = {"indices": torch.cat(indices), "logits": torch.cat(logits), "counts": torch.cat(counts)}
        staging = scratch / "shard"
        staging.mkdir()
        save_file(tensors, staging / "topk.safetensors")
        artifacts.commit_directory(staging, uri, kind="teacher", metadata={"samples": names})
