"""What a configuration will cost, before anything is paid: parameters, memory a GPU, tokens, GPU-hours, checkpoint sizes.

    bard plan configs/bard_4b.yaml

The architecture is built on the meta device (shapes, no memory), and one decoder layer of it is run there to see what its
backward pass keeps; so no GPU and no weights are needed. What cannot be known before the data is seen is an argument.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from bard_core.config.file import PipelineConfig
from bard_core.config.references import REGISTERED, block_size_of, hub_id, is_stage, pbm_stage
from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.train import TrainConfig
from bard_core.data.batches import noisy_copies
from bard_core.data.index import Index
from bard_core.data.inputs import found_model
from bard_core.lab.model import build_lab_model
from bard_core.lab.processor import build_lab_processor
from bard_core.models.adapters import adapt
from bard_core.models.qwen3_vl import architecture
from bard_core.models.released import read_config
from bard_core.models.vlm import empty_model
from bard_core.plan.balance import Balance, balance
from bard_core.plan.peak import Parameters, count, memory, numel, numel_trained
from bard_core.store import artifacts
from bard_core.training.throughput import PEAK_FLOPS, forward_flops, shape_of

GPU_MEMORY = {"a100": 80 * 2**30, "h100": 80 * 2**30, "h200": 141 * 2**30}  # bytes, from the vendor's data sheets


@dataclass(frozen=True)
class Assumptions:
    """What the configuration does not say. ``tokens_per_sample`` counts clean and noisy tokens; None: a full row.
    ``train_samples``: of the dataset, for stages whose length is in epochs. ``dataset``: a prepared one, which says both, and
    how evenly its samples load the ranks.

    Raises:
        ValueError: a value is out of range, naming it.
    """

    gpu: str = "h100"
    mfu: float = 0.35
    tokens_per_sample: int | None = None
    image_tokens_per_sample: int = 1024
    train_samples: int | None = None
    dataset: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.mfu <= 1.0:
            raise ValueError(f"mfu is {self.mfu:g}; it must be a share, above 0 and at most 1")
        if self.tokens_per_sample is not None and self.tokens_per_sample < 1:
            raise ValueError(f"tokens_per_sample is {self.tokens_per_sample}; it must be at least 1")
        if self.train_samples is not None and self.train_samples < 1:
            raise ValueError(f"train_samples is {self.train_samples}; it must be at least 1")
        if self.image_tokens_per_sample < 0:
            raise ValueError(f"image_tokens_per_sample is {self.image_tokens_per_sample}; it must be at least 0")


@dataclass(frozen=True)
class Stage:
    """One training stage. Memory is the peak in bytes of one GPU, by what holds it; sizes are in bytes.

    ``gpu_hours`` count the waits of ``balance``, which is known where a dataset is.
    """

    name: str
    parent: str
    teacher: str
    steps: int
    batch_size: int
    tokens_per_step: int
    gpu_hours: float
    memory: dict[str, int]
    checkpoint: int
    model: int
    balance: Balance | None


@dataclass(frozen=True)
class Plan:
    """A configuration's cost."""

    name: str
    model: str
    gpus: int
    assumptions: Assumptions
    parameters: Parameters
    stages: tuple[Stage, ...]
    shard: int

    @property
    def heaviest(self) -> Stage:
        return max(self.stages, key=lambda stage: sum(stage.memory.values()))

    @property
    def fits(self) -> bool:
        """Whether every stage fits the memory of the GPU that was assumed."""
        return sum(self.heaviest.memory.values()) <= GPU_MEMORY[self.assumptions.gpu]

    @property
    def gpu_hours(self) -> float:
        return sum(stage.gpu_hours for stage in self.stages)


def meta_model(config: PipelineConfig, reference: str = "source") -> Any:
    """The architecture of a model that the configuration names, with shapes and no memory; a stage's is its parent's.

    Raises:
        OSError: the model is neither a public one nor a folder, and no hub is to be reached (from transformers).
        InputError: MLflow knows no such model.
    """
    if is_stage(reference):
        before = [stage for stage in config.pbm.stages if stage.sizes[0] <= (block_size_of(reference) or 1)]
        reference = next((stage.parent for stage in reversed(before) if stage.parent is not None), "source")
        if is_stage(reference) and reference != "source":
            return meta_model(config, reference)
        reference = config.source.model if reference == "source" else reference
    if reference == "lab" and config.data.lab is not None:
        world = config.data.lab
        with torch.device("meta"):
            return build_lab_model(
                config.source.lab_model, build_lab_processor(), world.cell_px * max(world.rows, world.columns), 0
            )
    if (known := architecture(reference)) is not None:
        return empty_model(known)
    if REGISTERED.fullmatch(reference) or "://" in reference:
        return empty_model(read_config(artifacts.fetch(found_model(reference, config.tracking).place)))
    place, revision = (reference, None) if reference.startswith(("/", "~")) else hub_id(reference)
    return empty_model(read_config(place, revision))


def total_flops(model: Any, train: TrainConfig, tokens_per_sample: int, image_tokens: int, teacher: Any = None) -> float:
    """FLOPs of one optimizer step over the global batch, with full rows of attention, vision, recomputation and the teacher."""
    forward, vision = _forward_flops(model, train, tokens_per_sample, image_tokens)
    trained = 4 if train.activation_checkpointing else 3  # the backward pass costs two forwards, recomputing one more
    frozen_vision = train.optimizer.vision_lr == 0
    asked = sum(_forward_flops(teacher, train, tokens_per_sample, image_tokens)) if teacher is not None else 0.0
    return train.batch_size * (forward * trained + vision * (1 if frozen_vision else 3) + asked)


def _forward_flops(model: Any, train: TrainConfig, tokens: int, image_tokens: int) -> tuple[float, float]:
    """Of one sample: the language model's forward pass, and the vision side's."""
    forward = forward_flops(shape_of(model), tokens, tokens, train.max_tokens_per_row)
    if (vision_config := getattr(model.config, "vision_config", None)) is None:
        return forward, 0.0
    patches = image_tokens * getattr(vision_config, "spatial_merge_size", 2) ** 2
    width, depth = vision_config.hidden_size, getattr(vision_config, "depth", 0)
    return forward, patches * (2 * count(model).vision + 2 * 2 * patches * width * depth)


def plan(config: PipelineConfig, assumptions: Assumptions) -> Plan:
    """The cost of every training stage of a configuration, on ``compute``'s workers, one GPU each.

    Raises:
        ValueError: a stage's length is in epochs, and neither a dataset nor ``train_samples`` is assumed.
        ArtifactError: there is no whole dataset where one is assumed.
    """
    source = meta_model(config)
    index = None if assumptions.dataset is None else Index.open(artifacts.fetch(assumptions.dataset))
    if index is not None:
        samples = int(index.repeat[index.train].sum())
        assumptions = replace(assumptions, train_samples=samples)
    gpus = config.compute.most_workers
    peak = PEAK_FLOPS[assumptions.gpu]

    def stage(
        name: str, train: TrainConfig, parent: str, model: Any, size: int | None, noise: NoiseConfig, teacher: str = ""
    ) -> Stage:
        if train.num_epochs and assumptions.train_samples is None:
            raise ValueError(f"{name} trains for {train.num_epochs:g} epochs: say of how many samples with --train-samples")
        train = train.in_steps(assumptions.train_samples or 0)
        tokens, images = assumptions.tokens_per_sample or train.max_tokens_per_row, assumptions.image_tokens_per_sample
        loads = None if index is None else balance(index, train, size, noisy_copies(size, noise), gpus)
        if loads is not None:
            tokens, images = loads.tokens_per_sample, loads.image_tokens_per_sample
        asked = meta_model(config, teacher) if teacher else None
        flops = total_flops(model, train, tokens, images, asked) / (loads.in_step * loads.useful if loads else 1)
        whole = numel(model)
        if train.lora is not None:
            adapt(model, train.lora)
        return Stage(
            name=name,
            parent=parent,
            teacher=teacher,
            steps=train.steps,
            batch_size=train.batch_size,
            tokens_per_step=train.batch_size * tokens,
            gpu_hours=train.steps * flops / (peak * assumptions.mfu) / 3600,
            memory=memory(
                model,
                train,
                config.compute,
                tokens,
                numel(asked) if asked is not None else 0,
                None if loads is None else (loads.rows, loads.row_tokens),
                noisy=size is not None,
            ),
            checkpoint=4 * numel(model) + 8 * numel_trained(model, train),
            model=(2 if train.precision == "bfloat16" else 4) * whole,
            balance=loads,
        )

    stages, parent = [], "source"
    if config.source.train is not None:
        stages.append(stage("source", config.source.train, "nothing", source, None, config.pbm.noise))
    for one in config.pbm.stages:
        largest = pbm_stage(one.block_size)
        model = meta_model(config, largest)
        stages.append(stage(pbm_stage(*one.sizes), one.train, one.parent or parent, model, one.block_size, config.pbm.noise))
        parent = largest
    for student in config.swd.students:
        name = f"swd-b{block_size_of(student) or '?'}"
        model, size = meta_model(config, student), block_size_of(student)
        stages.append(stage(name, config.swd.train, student, model, size, config.swd.noise, config.swd.teacher))
    total = numel(source)
    return Plan(config.name, config.source.model, gpus, assumptions, count(source), tuple(stages), 12 * total // gpus)
