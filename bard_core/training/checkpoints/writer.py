"""Checkpoints of a run: torch DCP shards in ``step-000500/``, believed only once their manifest is there and verifies.

Writing goes on behind training. State is copied to the host, then a thread of every rank writes and hashes that rank's shards
under a name nobody looks for; when all are done, rank 0 writes the manifest and gives the folder its name. So a kill at any
moment leaves a whole checkpoint or none. Under an s3:// prefix the shards are uploaded and the manifest comes last.
A checkpoint holds the model, the optimizer and the step. Rates, samples, noise and random numbers follow from the step.
"""

import logging
import shutil
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import async_save

from bard_core.config.sections.compute import CheckpointConfig
from bard_core.store import artifacts, storage, workshop
from bard_core.store.artifacts import FileEntry, Manifest
from bard_core.store.hiccups import no_room
from bard_core.training.checkpoints import dcp, retention
from bard_core.training.ranks import barrier, from_every_rank, from_rank_zero, new_cpu_group, once_a_node, rank_and_world

log = logging.getLogger(__name__)
PREFIX = "model."  # the objective holds the stock model under this name; checkpoints keep the stock names
METADATA = ".metadata"
FAILURES_IN_A_ROW = 2


class CheckpointError(Exception):
    """A checkpoint could not be written, or is not this run's: says which, why and what to do."""


@dataclass(frozen=True)
class Run:
    """Where a run keeps its checkpoints, and what it must have been started from to be resumed.

    ``origin`` names the digests that decide the run's result ("code", "config", "dataset", "parent", "teacher").
    """

    uri: str
    origin: Mapping[str, str]
    settings: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def scratch(self) -> Path:
        """Where this node writes shards: beside the checkpoints when those are local, so that committing is a rename."""
        if storage.is_local(self.uri):
            return storage.local_path(self.uri)
        return storage.home() / "staging" / artifacts.digest(self.uri)[:16]

    def checkpoint(self, step: int) -> str:
        return retention.checkpoint_uri(self.uri, step)


def _state(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(objective, optimizer, options=StateDictOptions(full_state_dict=False))
    return {"model": {name.removeprefix(PREFIX): value for name, value in model_state.items()}, "optimizer": optimizer_state}


class Writer:
    """Writes a run's checkpoints behind its training, one at a time. Every rank makes one and calls the same methods.

    A save that fails is an error in the log, and training goes on, for the checkpoint before it is still whole; the second in a
    row, and a failure of the last one, stop the run. ``blocked_s`` counts the seconds that training waited, ``write_s`` those
    that the last write took behind it.
    """

    def __init__(self, run: Run, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._run, self._objective, self._optimizer = run, objective, optimizer
        self._group = new_cpu_group()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[str | None] | None = None
        self._fault: str | None = None
        self._failures = 0
        self.blocked_s = self.write_s = 0.0

    def save(self, step: int, notes: Mapping[str, Any] | None = None) -> None:
        """Begin to write the checkpoint of ``step``; returns when the state has been copied.

        ``notes`` are plain values for the manifest; by "val_loss", or else "loss", ``retention.prune`` calls the best.

        Raises:
            CheckpointError: this was the second failure in a row.
        """
        started = time.perf_counter()
        self._settle()
        staging = self._run.scratch / f".step-{step:06d}.{from_rank_zero(uuid.uuid4().hex)}"
        written = async_save(
            _state(self._objective, self._optimizer),
            storage_writer=dcp.PlainWriter(str(staging)),
            process_group=self._group,
            no_dist=not torch.distributed.is_initialized(),
        )
        self._pending = self._thread.submit(self._finish, written, staging, step, notes or {})
        self.blocked_s += time.perf_counter() - started

    def close(self) -> None:
        """Wait for what is being written.

        Raises:
            CheckpointError: the last checkpoint could not be written.
        """
        started = time.perf_counter()
        self._settle()
        self._thread.shutdown()
        self.blocked_s += time.perf_counter() - started
        if self._failures:
            raise CheckpointError(self._complaint(self._fault))

    def _settle(self) -> None:
        """Wait for the save before; all ranks learn the same outcome."""
        if self._pending is None:
            return
        self._fault, self._pending = self._pending.result(), None
        self._failures = self._failures + 1 if self._fault else 0
        if self._fault and rank_and_world()[0] == 0:
            log.error("%s", self._complaint(self._fault))
        if self._failures >= FAILURES_IN_A_ROW:
            raise CheckpointError(self._complaint(self._fault))

    def _complaint(self, fault: str | None) -> str:
        before = retention.steps(self._run.uri)
        left = f"the one before it is still whole (step {before[-1]})" if before else "there is no checkpoint yet"
        return (
            f"{self._run.uri}: a checkpoint could not be written ({fault}); {left}. "
            "See that the place is writable and has room, and start again"
        )

    def _finish(self, written: Any, staging: Path, step: int, notes: Mapping[str, Any]) -> str | None:
        """In the thread of every rank: await the shards, hash and publish them; the fault of any rank is everybody's."""
        started = time.perf_counter()
        rank, _ = rank_and_world()
        fault: str | None = None
        entries: tuple[FileEntry, ...] = ()
        final = self._run.checkpoint(step)
        try:
            written.result()
            entries = artifacts.file_entries(staging, lambda name: dcp.written_by(name) == rank)
            if not storage.is_local(self._run.uri):
                storage.upload_tree(staging, final, {entry.path for entry in entries})
        except (Exception, CheckpointException) as error:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
            fault = self._full(staging) or _reason(error)
        found = from_every_rank((fault, entries), self._group)
        fault = next((fault for fault, _ in found if fault), None)
        if rank == 0 and fault is None:
            try:
                self._commit(staging, final, step, notes, [entry for _, entries in found for entry in entries])
            except Exception as error:  # noqa: BLE001
                fault = _reason(error)
        if rank == 0 and fault is None:
            self._prune(step)
        fault = from_rank_zero(fault, self._group)
        shutil.rmtree(staging, ignore_errors=True)
        self.write_s = time.perf_counter() - started
        return fault

    def _full(self, staging: Path) -> str | None:
        """What a full disk lacks; DCP says of it only that a write failed."""
        tensors = [*self._objective.parameters(), *(t for s in self._optimizer.state.values() for t in s.values())]
        needed = sum(t.numel() * t.element_size() for t in map(_local, tensors) if isinstance(t, torch.Tensor))
        folder = staging if staging.is_dir() else staging.parent
        written = sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) if folder == staging else 0
        if not folder.is_dir() or shutil.disk_usage(folder).free >= needed - written:
            return None
        return f"No space left on device: {no_room(folder, needed - written)}"

    def _commit(self, staging: Path, final: str, step: int, notes: Mapping[str, Any], entries: list[FileEntry]) -> None:
        manifest = Manifest(
            kind="checkpoint",
            files=tuple(sorted(entries, key=lambda entry: entry.path)),
            step=step,
            config_digest=self._run.origin.get("config"),
            parent_digest=self._run.origin.get("parent"),
            metadata={"origin": dict(self._run.origin), "world": rank_and_world()[1], "torch": torch.__version__, **notes},
        )
        if storage.is_local(final):
            artifacts.write_manifest(str(staging), manifest)
            workshop.replace_folder(staging, storage.local_path(final))
            return
        for name in set(storage.list_files(final)) - {entry.path for entry in entries}:  # what a torn save left there
            storage.delete_file(storage.join(final, name))
        artifacts.write_manifest(final, manifest)

    def _prune(self, step: int) -> None:
        try:
            retention.prune(self._run.uri, self._run.settings, step)
        except Exception as error:  # noqa: BLE001 - too many checkpoints are no reason to lose one
            log.warning("%s: old checkpoints could not be deleted: %s", self._run.uri, _reason(error))


def _local(value: Any) -> Any:
    """This rank's part of a sharded tensor."""
    return value.to_local() if hasattr(value, "to_local") else value


def _reason(error: BaseException) -> str:
    """The cause, in one line: DCP wraps what happened on each rank in an exception of its own, with tracebacks."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


def latest_complete(run: Run, hashes: bool | None = None) -> str | None:
    """The newest checkpoint that is whole; says why newer ones are skipped, and sets those aside that were whole once.

    Ranks share the work and agree on the answer.

    ``hashes`` None: as the run's settings say. Remote checkpoints are brought here to be hashed.

    Raises:
        CheckpointError: a checkpoint in the run's folder belongs to another run. Nothing is resumed then.
    """
    rank, _ = rank_and_world()
    for step in reversed(from_rank_zero(retention.steps(run.uri) if rank == 0 else [])):
        uri = run.checkpoint(step)
        fault: artifacts.ArtifactError | None = None
        try:
            _refuse_strangers(run, uri)
            _check(uri, run.settings.verify_sha256 if hashes is None else hashes)
        except artifacts.ArtifactError as error:
            fault = error
        fault = next((fault for fault in from_every_rank(fault) if fault), None)
        if fault is None:
            return uri
        if rank == 0:
            log.warning("skipping checkpoint %s: %s", uri, fault)
            if isinstance(fault, artifacts.DamagedError):
                artifacts.set_aside(uri, fault)
        barrier()
    return None


def _refuse_strangers(run: Run, uri: str) -> None:
    there = artifacts.read_manifest(uri).metadata.get("origin", {})
    for what in sorted({*there, *run.origin}):
        if there.get(what) != run.origin.get(what):
            raise CheckpointError(
                f"{uri} was written by another run: its {what} is {str(there.get(what))[:16]}, this run's is "
                f"{str(run.origin.get(what))[:16]}. Move it out of the folder, or start with what it was trained with"
            )


def _check(uri: str, hashes: bool) -> None:
    """Sizes of all files and, of a local checkpoint, sha256 of every world-th; the pickle in it is always hashed."""
    if hashes and not storage.is_local(uri):
        once_a_node(lambda: artifacts.fetch(uri))
        return
    rank, world = rank_and_world()
    order = {entry.path: number for number, entry in enumerate(artifacts.read_manifest(uri).files)}
    artifacts.verify(uri, lambda entry: entry.path == METADATA or (hashes and order[entry.path] % world == rank))


def restore(uri: str, objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
    """Load a checkpoint that ``latest_complete`` found into the sharded objective and its optimizer; returns its step and notes.

    Raises:
        CheckpointError: it does not fit the model. ArtifactError: it was torn in the meantime.
    """
    local = storage.is_local(uri)
    folder = storage.local_path(uri) if local else once_a_node(lambda: artifacts.fetch(uri))
    state = _state(objective, optimizer)
    try:
        dcp.load(state, folder, no_dist=not torch.distributed.is_initialized())
    except CheckpointException as error:
        raise CheckpointError(
            f"{uri} does not fit this model ({_reason(error)}); start the run with the model it was of"
        ) from error
    set_state_dict(
        objective,
        optimizer,
        model_state_dict={PREFIX + name: value for name, value in state["model"].items()},
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=False, strict=True),
    )
    manifest = artifacts.read_manifest(str(folder))
    barrier()
    if not local:  # a copy brought here is needed once
        shutil.rmtree(folder, ignore_errors=True)
    return int(manifest.step or 0), manifest.metadata


def sweep(run: Run) -> None:
    """Remove what a kill left half-written. Every rank calls it, before the first save."""
    if rank_and_world()[0] == 0 or not storage.is_local(run.uri):
        for folder in run.scratch.glob(".step-*"):
            shutil.rmtree(folder, ignore_errors=True)
    barrier()
