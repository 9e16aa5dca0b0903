"""Doing one piece, in this process, by the functions that the pipeline's tasks call; what came of it is kept by its key."""

import json
import time
from collections.abc import Callable
from typing import Any

import torch

from bard_core.config.sections.compute import CheckpointConfig
from bard_core.config.sections.storage import StorageConfig
from bard_core.data import inputs
from bard_core.data import prepare as preparing
from bard_core.findings.cost import training_flops
from bard_core.findings.judge import judge
from bard_core.findings.pieces import BlockTraining, Distillation, Judgement, Prepared, SourceTraining, Work
from bard_core.store import artifacts, claims, places, storage
from bard_core.store.refs import DatasetRef, ModelRef
from bard_core.training.checkpoints.delivery import deliver
from bard_core.training.curve import Record
from bard_core.training.spec import StageSpec, checkpoint_ref, pbm_spec, run_of, source_spec, swd_spec
from bard_core.training.stage import prepare_base, run_stage

Done = dict[str, Any]


class PieceError(RuntimeError):
    """A piece cannot be done: says what lacks."""


def found(piece: Work, at: StorageConfig) -> Done | None:
    """What came of a piece; None where it was not done, or what it made does not stand any more."""
    try:
        done: Done = json.loads(storage.read_bytes(piece.place(at)))
        for ref in [done.get("dataset"), *done.get("models", {}).values()]:
            if ref is not None and artifacts.verify(ref["uri"], hashes=False).digest != ref["manifest_sha256"]:
                return None
    except (storage.NothingThereError, artifacts.ArtifactError):
        return None
    return done


def run(
    piece: Any, others: dict[str, Any], at: StorageConfig = StorageConfig(), on_step: Callable[[int], None] = lambda step: None
) -> Done:
    """What comes of a piece: found, or made now. Of two processes that want the same, the second waits and finds it.

    Args:
        others: pieces by key, those it needs among them.
        on_step: told now and then how many steps a training has gone.

    Raises:
        PieceError: one that it needs was not done. Stopped: it was told to; its next run goes on.
    """
    place = piece.place(at)
    with claims.exclusive(f"{place}.claim"):
        if (done := found(piece, at)) is not None:
            return done
        needed = [found(others[key], at) for key in piece.needs]
        if lacks := [others[key].name for key, done in zip(piece.needs, needed, strict=True) if done is None]:
            raise PieceError(f"{piece.name} needs {lacks[0]}, which was not done")
        started, processor = time.perf_counter(), time.process_time()
        made = _make(piece, [done for done in needed if done is not None], at, on_step)
        spent = {"seconds": time.perf_counter() - started, "processor_s": time.process_time() - processor}
        body = {"piece": piece.model_dump(mode="json"), "threads": torch.get_num_threads(), **spent, **made}
        storage.write_bytes(place, (json.dumps(body, indent=1) + "\n").encode())
        return body


def _make(piece: Any, needed: list[Done], at: StorageConfig, on_step: Callable[[int], None]) -> Done:
    if isinstance(piece, Prepared):
        return {"dataset": _prepare(piece, at).model_dump(mode="json")}
    dataset = DatasetRef.model_validate(needed[0]["dataset"])
    if isinstance(piece, SourceTraining):
        return _train(source_spec(piece.source, dataset), (1,), at, on_step)
    if isinstance(piece, BlockTraining):
        stage = piece.stage
        spec = pbm_spec(piece.method, stage.sizes, stage.train, dataset, _model(needed[1], piece.parent), stage.draw)
        return _train(spec, stage.sizes, at, on_step)
    if isinstance(piece, Distillation):
        both = _model(needed[1], piece.student), _model(needed[2], piece.teacher)
        spec = swd_spec(piece.swd, piece.clean_attention, dataset, *both)
        return _train(spec, (spec.block_size,), at, on_step)
    if isinstance(piece, Judgement):
        models = _model(needed[2], piece.model), _model(needed[1], "source")
        return judge(*models, dataset, piece.evaluation)
    raise TypeError(f"no such piece: {type(piece).__name__}")


def _model(done: Done, name: str) -> ModelRef:
    return ModelRef.model_validate(done["models"][name])


def _prepare(piece: Prepared, at: StorageConfig) -> DatasetRef:
    """The dataset where the pipeline has it too."""
    raw = inputs.raw_inputs(piece.data)
    uri = places.dataset_uri(at, piece.data, raw, [])
    with claims.exclusive(f"{uri}.claim"):
        return preparing.standing(uri) or preparing.prepare(inputs.pinned(piece.data, raw), uri, processes=1)


def _train(spec: StageSpec, sizes: tuple[int, ...], at: StorageConfig, on_step: Callable[[int], None]) -> Done:
    """Train in this process, from the run's newest checkpoint; a model of each size, where the pipeline has it too."""
    where = run_of(spec, CheckpointConfig(keep_last=1))
    base = prepare_base(spec, where)
    losses: list[float] = []

    def on_record(record: Record) -> None:
        losses.append(record["loss"])
        on_step(int(record["step"]))

    final = run_stage(spec, base, where, on_record)
    checkpoint = checkpoint_ref(spec, base, final)
    models = {}
    for size in sizes:
        own = checkpoint.of_size(size)
        uri = places.model_uri(at, own, spec.clean_attention)
        with claims.exclusive(f"{uri}.claim"):
            manifest = artifacts.standing(uri) or deliver(own, spec.clean_attention, uri)
        models[own.name] = own.model(uri, manifest.digest)
    return {
        "models": {name: ref.model_dump(mode="json") for name, ref in models.items()},
        "run_digest": spec.digest,
        "steps": spec.train.steps,
        "flops": training_flops(spec, next(iter(models.values()))),
        "last_loss": losses[-1] if losses else None,
    }
