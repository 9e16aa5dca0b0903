"""What a configuration will cost, before anything is paid: parameters, memory a GPU, tokens, GPU-hours, checkpoint sizes.

    bard plan configs/bard_4b.yaml

The architecture is built on the meta device (shapes, no memory), and one decoder layer of it is run there to see what its
backward pass keeps; so no GPU and no weights are needed. What cannot be known before the data is seen is an argument.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bard_core.config.file import PipelineConfig
from bard_core.config.references import REGISTERED, block_size_of, hub_id, is_stage, pbm_stage
from bard_core.config.sections import TrainConfig
from bard_core.data.inputs import found_model
from bard_core.lab.model import build_lab_model
from bard_core.lab.processor import build_lab_processor
from bard_core.models.qwen3_vl import architecture
from bard_core.models.released import read_config
from bard_core.models.vlm import decoder_layers, empty_model, vision_tower
from bard_core.store import artifacts
from bard_core.training.head import chunk_rows
from bard_core.training.optimizer import rates
from bard_core.training.parallel import OWN_UNIT_PARAMETERS
from bard_core.training.throughput import PEAK_FLOPS, forward_flops, shape_of

GPU_MEMORY = {"a100": 80 * 2**30, "h100": 80 * 2**30, "h200": 141 * 2**30}  # bytes, from the vendor's data sheets
KEPT_BYTES_PER_LOGIT = 10  # bf16 logits, their fp32 copy, and its gradient


@dataclass(frozen=True)
class Assumptions:
    """What the configuration does not say. ``tokens_per_sample`` counts clean and noisy tokens; None: a full row.
    ``train_samples``: of the dataset, for stages whose length is in epochs.

    Raises:
        ValueError: a value is out of range, naming it.
    """

    gpu: str = "h100"
    mfu: float = 0.35
    tokens_per_sample: int | None = None
    image_tokens_per_sample: int = 1024
    train_samples: int | None = None

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
class Parameters:
    """Numbers of parameters. ``layer`` is one decoder layer; ``root`` what is gathered with the root unit."""

    total: int
    text_layers: int
    layer: int
    vision: int
    embeddings: int
    root: int


@dataclass(frozen=True)
class Stage:
    """One training stage. Memory is the peak in bytes of one GPU, by what holds it; sizes are in bytes."""

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


def count(model: Any) -> Parameters:
    """Count a model's parameters, a tied head once."""
    layers = decoder_layers(model)
    layer = _numel(layers[0])
    total = _numel(model)
    tower = vision_tower(model)
    text = sum(_numel(one) for one in layers)
    return Parameters(
        total=total,
        text_layers=text,
        layer=layer,
        vision=_numel(tower) if tower is not None else 0,
        embeddings=_numel(model.get_input_embeddings()) * (1 if model.config.tie_word_embeddings else 2),
        root=total - text if layer >= OWN_UNIT_PARAMETERS else total,
    )


def _numel(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _FusedAttention(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps: q, k, v, output and the log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:-1], device="meta", dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("shapes only")


def _attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return _FusedAttention.apply(q, k, v).transpose(1, 2), None


@contextmanager
def _kept_bytes(exclude: set[int]) -> Iterator[list[int]]:
    """Collects the size of every distinct tensor that autograd keeps while the body runs."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []
    result: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in exclude and key not in kept:
            kept[key] = tensor.untyped_storage().nbytes()
            alive.append(tensor)  # so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield result
    result.append(sum(kept.values()))


def layer_activations(model: Any, tokens: int) -> int:
    """Bytes that one decoder layer's backward pass keeps of a row of ``tokens`` in bfloat16."""
    from transformers import AttentionInterface

    AttentionInterface.register("bard_plan", _attention)
    text = model.config.get_text_config()
    previous, text._attn_implementation = text._attn_implementation, "bard_plan"
    layer = decoder_layers(model)[0].to(torch.bfloat16).train()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    hidden = torch.empty(1, tokens, text.hidden_size, device="meta", dtype=torch.bfloat16, requires_grad=True)
    angle = torch.empty(1, tokens, head_dim, device="meta", dtype=torch.bfloat16)
    try:
        with _kept_bytes({parameter.untyped_storage()._cdata for parameter in layer.parameters()}) as kept:
            layer(hidden, position_embeddings=(angle, angle), attention_mask=None)
    finally:
        text._attn_implementation = previous
        layer.float()
    return kept[0]


def memory(model: Any, train: TrainConfig, gpus: int, tokens_per_sample: int, teacher: int = 0) -> dict[str, int]:
    """Peak bytes of one GPU by what holds them: FSDP2 with fp32 masters, AdamW, and one micro-batch in flight.

    ``teacher``: parameters of a frozen teacher, which every GPU holds whole.
    """
    parameters = count(model)
    text = model.config.get_text_config()
    width = 2 if train.precision == "bfloat16" else 4
    samples = math.ceil(train.batch_size / gpus / train.accumulation)
    rows = math.ceil(samples * tokens_per_sample / train.max_tokens_per_row)
    row = min(train.max_tokens_per_row, samples * tokens_per_sample)
    boundary = rows * row * text.hidden_size * width
    layer = rows * layer_activations(model, row) * width // 2
    layers = len(decoder_layers(model))
    shards = {"master weights": 4, "gradients": 4, "AdamW": 8}
    return {
        **{name: size * parameters.total // gpus for name, size in shards.items()},
        "gathered weights": width * (parameters.root + 2 * parameters.layer) if gpus > 1 else 0,
        "activations": layers * boundary + layer if train.activation_checkpointing else layers * layer,
        "attention mask": rows * row * row * (1 + width),
        "logits": min(chunk_rows(text.vocab_size, torch.device("cuda")), rows * row) * text.vocab_size * KEPT_BYTES_PER_LOGIT,
        "teacher": width * teacher,
    }


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
        ValueError: a stage's length is in epochs, and ``train_samples`` is not assumed.
    """
    source = meta_model(config)
    gpus = config.compute.most_workers
    peak = PEAK_FLOPS[assumptions.gpu]

    def stage(name: str, train: TrainConfig, parent: str, model: Any, teacher: str = "") -> Stage:
        if train.num_epochs and assumptions.train_samples is None:
            raise ValueError(f"{name} trains for {train.num_epochs:g} epochs: say of how many samples with --train-samples")
        train = train.in_steps(assumptions.train_samples or 0)
        tokens = assumptions.tokens_per_sample or train.max_tokens_per_row
        asked = meta_model(config, teacher) if teacher else None
        flops = total_flops(model, train, tokens, assumptions.image_tokens_per_sample, asked)
        trained = sum(p.numel() for group, lr in rates(model, train.optimizer).values() if lr > 0 for p in group)
        return Stage(
            name=name,
            parent=parent,
            teacher=teacher,
            steps=train.steps,
            batch_size=train.batch_size,
            tokens_per_step=train.batch_size * tokens,
            gpu_hours=train.steps * flops / (peak * assumptions.mfu) / 3600,
            memory=memory(model, train, gpus, tokens, _numel(asked) if asked is not None else 0),
            checkpoint=4 * _numel(model) + 8 * trained,
            model=(2 if train.precision == "bfloat16" else 4) * _numel(model),
        )

    stages, parent = [], "source"
    if config.source.train is not None:
        stages.append(stage("source", config.source.train, "nothing", source))
    for one in config.pbm.stages:
        largest = pbm_stage(one.block_size)
        stages.append(stage(pbm_stage(*one.sizes), one.train, one.parent or parent, meta_model(config, largest)))
        parent = largest
    for student in config.swd.students:
        name = f"swd-b{block_size_of(student) or '?'}"
        stages.append(stage(name, config.swd.train, student, meta_model(config, student), config.swd.teacher))
    total = _numel(source)
    return Plan(config.name, config.source.model, gpus, assumptions, count(source), tuple(stages), 12 * total // gpus)
