"""One training stage on one worker: wires data, model, objective and checkpoints together, as a :class:`StageSpec` says.

The launcher (Ray Train, torchrun, a test) sets up the process group, or none, and calls :func:`run_stage` on every rank.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bard_core.config.sections.compute import ParallelConfig
from bard_core.config.versions import VERSIONS
from bard_core.data.batches import BatchSpec, noisy_copies
from bard_core.data.examples import Positions
from bard_core.data.feed import MicroBatches, Walk
from bard_core.data.fit import Fitted
from bard_core.data.reader import Reader
from bard_core.data.units import CACHE_BYTES
from bard_core.diffusion.names import MASK_TOKEN, TrainedAttention, decoded
from bard_core.diffusion.noise import replacement_tokens
from bard_core.lab.model import build_lab_model
from bard_core.models import BardSettings, adapters, bard_settings, load, record_settings
from bard_core.models.vlm import embedding_rows, outline, reserved_ids, same_patches, same_vision
from bard_core.models.weights import fill
from bard_core.store import artifacts, provenance, storage, workshop
from bard_core.store.claims import Claim
from bard_core.store.refs import DatasetRef
from bard_core.training.checkpoints.writer import Run
from bard_core.training.curve import CURVE, Curve, Record
from bard_core.training.images import ImageEncoder
from bard_core.training.interrupts import Interrupts
from bard_core.training.loop import train
from bard_core.training.objectives import Autoregressive, Objective, ProgressiveBlockMerging, StageWiseDistillation
from bard_core.training.optimizer import freeze
from bard_core.training.parallel import compile_layers, shard, use_activation_checkpointing
from bard_core.training.ranks import once_a_node, rank_and_world
from bard_core.training.spec import StageSpec
from bard_core.training.teacher import OnlineTeacher, Teacher, precompute
from bard_core.training.validation import Validation

log = logging.getLogger(__name__)


def prepare_base(spec: StageSpec, run: Run) -> str:
    """The uri of the model that training starts from: the parent's, or a new lab model's, made again when it is damaged.

    Called once, by the launcher.
    """
    if spec.parent is not None:
        return spec.parent.uri
    if spec.lab_model is None:
        raise ValueError(f"stage {spec.name} has neither a parent model nor a lab model to start from")
    base = storage.join(run.uri, "base")
    if artifacts.standing(base) is None:
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(artifacts.fetch(spec.dataset, part="processor/") / "processor")
        model = build_lab_model(spec.lab_model, processor, _largest_side(spec.dataset), spec.train.seed)
        mask_id = int(processor.tokenizer.convert_tokens_to_ids(MASK_TOKEN))
        record_settings(model, BardSettings(block_size=1, mask_token_id=mask_id, system_prompt=spec.dataset.system_prompt))
        with workshop.scratch("base") as scratch:
            staging = scratch / "base"
            model.save_pretrained(staging)
            processor.save_pretrained(staging)
            artifacts.commit_directory(staging, base, kind="model")
    return base


def _largest_side(dataset: DatasetRef) -> int:
    """Longest image side of the training data in pixels (a patch is 16)."""
    reader = Reader(dataset, "train")
    grids = (reader.row(i, ("image_grid_thw",))["image_grid_thw"].as_py() for i in range(len(reader)))
    return 16 * max(side for sample in grids for grid in sample or () for side in grid[1:])


def run_stage(
    spec: StageSpec,
    base: str,
    run: Run,
    on_record: Callable[[Record], None] = lambda record: None,
    losing_node: Callable[[], bool] | None = None,
    claim: Claim | None = None,
    data_workers: int = 0,
    cache_bytes: int = CACHE_BYTES,
    parallel: ParallelConfig = ParallelConfig(),
) -> str:
    """Train this rank's share and return the final checkpoint's uri. Rank 0 appends to the run's ``curve.jsonl``.

    ``base`` is what ``prepare_base`` returned. For ``losing_node`` and ``claim`` see ``Interrupts``; for errors, ``loop.train``.
    ``data_workers`` processes load ahead (0: none), ``cache_bytes`` is for the node's fetched units; neither changes a result.
    """
    from transformers import AutoProcessor

    started = time.perf_counter()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    reader = once_a_node(lambda: Reader(spec.dataset, "train", cache_bytes))
    processor = AutoProcessor.from_pretrained(artifacts.fetch(spec.dataset, part="processor/") / "processor")
    tokenizer = processor.tokenizer
    folder = once_a_node(lambda: artifacts.fetch(spec.parent or base))
    outlined = outline(folder) if dist.is_initialized() else None
    model = load(folder, device=device) if outlined is None else outlined
    settings = bard_settings(model)
    mask_id = settings.mask_token_id
    if mask_id is None:
        mask_id = int(tokenizer.convert_tokens_to_ids(MASK_TOKEN))
    if spec.stage == "swd" and settings.block_size > 1 and settings.clean_attention != decoded(spec.clean_attention):
        raise ValueError(
            f"{spec.name}: the student's clean stream is {settings.clean_attention!r}; set pbm.clean_attention to that"
        )
    block_size = None if spec.stage == "source" else spec.block_size
    limit, merge = spec.train.max_tokens_per_row, processor.image_processor.merge_size
    fitted = Fitted(reader, block_size, noisy_copies(block_size, spec.noise), limit, processor.image_token_id, merge)
    if fitted.told and rank_and_world()[0] == 0:
        log.warning("%s: %s", spec.name, fitted.told)
    walk = Walk(fitted, spec.train.seed, Positions(model.config))
    if spec.train.lora is not None:
        adapters.adapt(model, spec.train.lora)
    frozen = freeze(model, spec.train.optimizer)
    if spec.train.activation_checkpointing:
        use_activation_checkpointing(model)
    if parallel.compile_layers:
        compile_layers(model)
    encoder = ImageEncoder(model, processor.image_processor, frozen, device)
    batch_spec = BatchSpec(
        block_size=block_size,
        noise=spec.noise,
        mask_token_id=mask_id,
        end_token_id=int(tokenizer.eos_token_id),
        pad_token_id=int(tokenizer.pad_token_id),
        replacements_W=replacement_tokens(len(tokenizer), [*reserved_ids(model, tokenizer), mask_id]),
        reduction=spec.reduction,
        sample_length="supervised" if spec.stage == "swd" else "padded",
        tail_weight=spec.tail_weight,
        teacher_block_size=spec.teacher.block_size if spec.teacher else None,
        block_sizes=spec.block_sizes,
        grow_steps=spec.train.steps if spec.draw == "growing" else 0,
        seed=spec.train.seed,
        max_tokens_per_row=spec.train.max_tokens_per_row,
        image_token_id=processor.image_token_id,
    )

    rank, world = rank_and_world()
    validate: Validation | None = None
    if spec.train.validate_every is not None:
        eyes = ImageEncoder(model, processor.image_processor, frozen, device)
        at_once = max(1, spec.train.batch_size // (world * spec.train.accumulation))
        looked_at = (_held_out(spec, walk, fitted), batch_spec, spec.train.validate_samples, at_once)
        validate = Validation(*looked_at, eyes, spec.train.precision, device)
    decoding = processor.image_processor if data_workers else None
    data = MicroBatches(walk, batch_spec, spec.train.batch_size, spec.train.accumulation, rank, world, decoding, spec.train.steps)

    objective = _objective(spec, model)
    shard(objective, model, spec.train.precision, device, frozen, parallel)
    if outlined is not None:
        fill(model, folder, device, within=objective)
    adapters.initialise(model, spec.train.seed)
    if isinstance(objective, StageWiseDistillation):
        objective.teacher = _teacher(spec, model, walk, batch_spec, encoder, device)
    curve = Curve(storage.join(run.uri, CURVE), rank == 0)
    if rank == 0:
        provenance.write_of_run(run.uri, provenance.entry_of(spec.name, spec.dataset))
    startup_s = time.perf_counter() - started

    def record(values: Record) -> None:
        values["startup_s"] = startup_s
        curve.append(values)
        on_record(values)

    interrupts = Interrupts(run.uri, losing_node, claim=claim)
    try:
        return train(objective, data, encoder, spec.train, run, device, record, interrupts, data_workers, validate)
    finally:
        interrupts.close()


def _held_out(spec: StageSpec, walk: Walk, fitted: Fitted) -> Walk:
    """The held-out samples that fit rows as the training samples do."""
    reader = once_a_node(lambda: Reader(spec.dataset, "eval"))
    if not len(reader):
        raise ValueError(
            f"{spec.name}: train.validate_every looks at held-out samples, and the dataset has none: data.eval_fraction"
        )
    return replace(walk, reader=fitted.like(reader))


def _objective(spec: StageSpec, model: Any) -> Objective:
    """Without its teacher, which may see through the student's eyes and so comes when those are there."""
    if spec.stage == "source":
        return Autoregressive(model)
    if spec.stage == "pbm":
        return ProgressiveBlockMerging(model, spec.clean_attention, spec.noise.name, spec.ar_weight, spec.noise.schedule)
    if spec.teacher is None or spec.swd is None:
        raise ValueError("stage swd needs a teacher and its configuration")
    return StageWiseDistillation(model, spec.clean_attention, None, spec.swd, spec.ar_weight)


def _teacher(
    spec: StageSpec, student: Any, walk: Walk, batch_spec: BatchSpec, encoder: ImageEncoder, device: torch.device
) -> Teacher:
    """The frozen teacher: the model itself, or its answers in storage beside the dataset, which this call completes."""
    assert spec.teacher is not None and spec.swd is not None
    ref, config = spec.teacher, spec.swd

    def asked(folder: Path) -> Teacher:
        dtype = torch.bfloat16 if spec.train.precision == "bfloat16" else torch.float32  # frozen, so no master copy is needed
        model = load(folder, device=device, dtype=dtype)
        if not same_patches(model, student):
            raise ValueError(f"swd.teacher {ref.uri} cuts images into other patches than its student; choose one of its family")
        shared = encoder.frozen and same_vision(model, student)
        eyes = encoder if shared else ImageEncoder(model, encoder.image_processor, True, device)
        own = bard_settings(model)
        mask_id = batch_spec.mask_token_id if own.mask_token_id is None else own.mask_token_id
        masks = None if mask_id == batch_spec.mask_token_id else (batch_spec.mask_token_id, mask_id)
        seen: TrainedAttention = own.clean_attention if own.block_size > 1 else spec.clean_attention
        autoregressive = ref.block_size == 1
        if autoregressive:
            seen, masks = "causal", None
        return OnlineTeacher(model, seen, config.top_k, eyes, masks, embedding_rows(student), autoregressive)

    if config.targets == "online":
        return asked(once_a_node(lambda: artifacts.fetch(ref)))
    depends_on = {
        "version": VERSIONS["teacher"],
        "teacher": ref.key,
        "teacher_block_size": ref.block_size,
        "dataset": spec.dataset.key,
        "noise": spec.noise,
        "seed": spec.train.seed,
        "block_size": spec.block_size,
        "clean_attention": spec.clean_attention,
        "top_k": config.top_k,
    }
    uri = storage.join(f"{spec.dataset.uri}-teacher", artifacts.digest(depends_on)[:16])
    samples = spec.train.steps * spec.train.batch_size
    return precompute(uri, samples, walk, batch_spec, lambda: asked(artifacts.fetch(ref)), device)
