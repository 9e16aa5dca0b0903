"""Every knob of the pipeline, as strict pydantic models: a misspelt key or an out-of-range value never starts a task.

Each top-level section is one input of ``workflows/pipeline.py:bard_pipeline`` and one key of a ``configs/*.yaml``, so
a stage is cached by exactly the sections it reads. Units are in the names (``timeout_s``, ``max_pixels``).
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from bard_core.config.bases import Based
from bard_core.config.references import ModelPlace, ModelReference
from bard_core.config.sources import RawSource
from bard_core.config.strict import StrictModel, later
from bard_core.diffusion.names import CleanAttention, NoiseName, NoiseSchedule, Reduction, SizeDraw


def _place(uri: str) -> str:
    """Ray's workers have working folders of their own, so a relative folder would be another place there."""
    if uri and not uri.startswith(("/", "~")) and not re.match(r"(s3|gs|gcs|az|abfss?|file|memory)://.", uri):
        raise ValueError(f"{uri!r} is neither an absolute folder nor a place like s3://bucket/prefix")
    return uri


def _server(uri: str) -> str:
    if uri and not re.match(r"(https?|sqlite|postgresql|mysql|mssql|databricks)\b.*:", f"{uri}:"):
        raise ValueError(f"{uri!r} is no MLflow server; allowed: http://..., https://..., or a database such as sqlite:///...")
    return uri


def _no_path(name: str) -> str:
    if ":" in name or ".." in name or "/" in name:
        raise ValueError(f"{name!r} is no name in MLflow; allowed: one without '/', ':' and '..'")
    return name


Place = Annotated[str, AfterValidator(_place)]
MlflowName = Annotated[str, AfterValidator(_no_path)]


class StorageConfig(StrictModel):
    """Where artifacts live."""

    root_uri: Place = Field(
        "", description="Folder or s3:// prefix of all artifacts; empty: $BARD_HOME, else .bard beside the code"
    )


class TrackingConfig(StrictModel):
    """Where MLflow keeps runs and models."""

    tracking_uri: Annotated[str, AfterValidator(_server)] = Field(
        "", description="MLflow server; empty: $MLFLOW_TRACKING_URI, else sqlite in $BARD_HOME"
    )
    experiment: MlflowName = Field("bard", min_length=1, description="MLflow experiment name")
    registered_model: MlflowName = Field("bard", min_length=1, description="Registered model whose versions are the checkpoints")


LabTask = Literal["read", "count", "yesno", "sort", "add", "chart", "list"]


class LabWorldConfig(StrictModel):
    """The generated world: grids of labelled cells, questions that name cells, answers that list and then derive."""

    seed: int = Field(0, ge=0)
    rows: int = Field(3, ge=1, le=5, description="Grid rows; rows x columns <= alphabet")
    columns: int = Field(3, ge=1, le=5)
    alphabet: int = Field(26, ge=1, le=26, description="How many letters the world uses; an image shows distinct ones")
    digits: int = Field(10, ge=2, le=10, description="How many digits the world uses, from 0")
    cell_px: int = Field(32, ge=16, le=128, description="Side of a cell in pixels; 32 is one visual token of the lab model")
    min_cells: int = Field(3, ge=1, le=9, description="Fewest cells a question names")
    max_cells: int = Field(4, ge=1, le=9, description="Most cells a question names")
    turns_per_image: int = Field(4, ge=1, le=16, description="Question-answer turns of a multi-turn sample")
    train_images: int = Field(3000, ge=1)
    eval_images: int = Field(256, ge=1, description="Held-out images, one question each")
    tasks: tuple[LabTask, ...] = later(
        (),
        description="Harder questions, of which each image's last one goes around; turns_per_image is then the most, in held-out "
        "samples too. None: list some cells, then derive a sum, a maximum and a minimum",
    )
    held_out: Literal["evaluation", "validation"] = later(
        "evaluation",
        description="validation: other held-out images, as many, to tune by; evaluation images are then left alone",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "LabWorldConfig":
        if self.rows * self.columns > self.alphabet:
            raise ValueError(
                f"rows x columns is {self.rows * self.columns}, more cells than the alphabet's {self.alphabet} letters"
            )
        if not self.min_cells <= self.max_cells <= self.rows * self.columns:
            raise ValueError("needs min_cells <= max_cells <= rows x columns")
        if "chart" in self.tasks and self.rows < 2:
            raise ValueError("the task chart needs rows >= 2: bars, and letters below them")
        return self


class DataConfig(Based):
    """prepare: raw shards in, tokenised ``messages`` samples out."""

    FOLDER: ClassVar[str] = "data"

    lab: LabWorldConfig | None = Field(None, description="Generate the lab world's raw shards and read those")
    sources: tuple[RawSource, ...] = Field((), description="Raw shards to read; the lab adds its own three")
    processor: str = Field(
        "lab", min_length=1, description="'lab' (built in code) or a hub id / folder of a Hugging Face processor"
    )
    system_prompt: str | None = Field(
        None, description="System turn of samples that bring none, recorded with every model; None: none, '': an empty one"
    )
    processor_revision: str | None = Field(None, description="Of a hub processor: branch, tag or commit; None: main as it is now")
    max_tokens: int = Field(8192, ge=16, le=2**20, description="Samples longer than this are cut at a turn boundary or refused")
    max_answer_tokens: int | None = Field(None, ge=1, description="Likewise for one answer; None: max_tokens alone bounds it")
    min_pixels: int = Field(256 * 256, ge=256)
    max_pixels: int = Field(2048 * 2048, ge=256)
    video_fps: float = Field(2.0, gt=0.0, le=60.0, description="Frames a second that are seen of a video")
    video_frames: int | None = Field(None, ge=2, le=4096, description="So many frames of a video instead, spread evenly")
    video_max_frames: int = Field(128, ge=4, le=4096, description="Most frames of a video; the rest is left out evenly")
    video_max_pixels: int = Field(
        8 * 1024 * 1024, ge=4096, description="Pixels of all frames of a video together; two frames share a visual token"
    )
    eval_fraction: float = Field(0.02, ge=0.0, le=0.5, description="Share of images held out (lab brings its own split)")
    max_refused: float = Field(0.05, ge=0.0, le=1.0, description="Share of a source's rows that may be refused before it fails")
    suites: tuple[str, ...] = Field((), description="Evaluation suites whose images must not be trained on")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _has_data(self) -> "DataConfig":
        if self.lab is None and not self.sources:
            raise ValueError("data needs `lab` or at least one entry in `sources`")
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two entries of data.sources have the name {twice[0]!r}; give each its own")
        if self.processor != "lab" and self.min_pixels > self.max_pixels:
            raise ValueError(f"data.min_pixels {self.min_pixels} is above data.max_pixels {self.max_pixels}")
        return self


Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimizerConfig(StrictModel):
    """AdamW with cosine decay. Paper: betas (0.9, 0.95), lr 2e-5, vision 2e-6, global batch 256."""

    lr: float = Field(2e-5, gt=0.0, le=1.0)
    vision_lr: float = Field(2e-6, ge=0.0, le=1.0, description="0 freezes the vision tower (its features are computed once)")
    merger_lr: float | None = Field(None, ge=0.0, le=1.0, description="Vision-language merger; None: lr, 0: frozen")
    weight_decay: float = Field(0.0, ge=0.0, le=1.0, description="Not on norms, biases and embeddings")
    freeze_language: bool = Field(False, description="Train the vision side alone: decoder, embeddings and head stay as they are")
    freeze_embeddings: bool = Field(False, description="Token embeddings, and a head tied to them, stay as they are")
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    warmup_steps: int = Field(100, ge=0)
    warmup_from: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the rate that the warm-up rises from")
    min_lr_ratio: float = Field(0.0, ge=0.0, le=1.0, description="Floor of the cosine, as a share of the rate")
    vision_min_lr_ratio: float | None = Field(None, ge=0.0, le=1.0, description="The vision tower's floor; None: min_lr_ratio")
    max_grad_norm: float = Field(1.0, gt=0.0)

    @model_validator(mode="after")
    def _something_trains(self) -> "OptimizerConfig":
        if self.freeze_language and self.vision_lr == 0 and self.merger_lr == 0:
            raise ValueError("freeze_language with vision_lr 0 and merger_lr 0 leaves nothing to train")
        return self


class LoraConfig(StrictModel):
    """Low-rank adapters train in place of the language model; embeddings and head stay too. Consolidation merges them."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0.0, description="Adapters count alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Linear layers of the decoder that get one",
    )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class TrainConfig(Based):
    """One run of the training loop."""

    FOLDER: ClassVar[str] = "train"

    steps: int = Field(0, ge=0, description="Optimizer steps; or give num_epochs")
    num_epochs: float = Field(
        0.0,
        ge=0.0,
        description="Passes over the training samples, by their sources' weights, in place of steps; 0.5: half of one",
    )
    batch_size: int = Field(256, ge=1, description="Samples a step over all workers")
    accumulation: int = Field(1, ge=1, description="Micro-batches a step")
    max_tokens_per_row: int = Field(8192, ge=64, description="Packed row length, noisy copies included")
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = later(None, description="For one GPU; the vision side trains by its rates, at 0 it stays as it is")
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    activation_checkpointing: bool = False
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints")
    log_every: int = Field(10, ge=1)
    validate_every: int | None = Field(
        None,
        ge=1,
        description="Steps between looks at held-out samples, a multiple of log_every, and one at the end; None: never",
    )
    validate_samples: int = Field(64, ge=1, description="Held-out samples a look, spread over the split")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _looks_are_logged(self) -> "TrainConfig":
        if self.validate_every is not None and self.validate_every % self.log_every:
            raise ValueError(f"validate_every {self.validate_every} must be a multiple of log_every {self.log_every}")
        return self

    @model_validator(mode="after")
    def _adapters_train(self) -> "TrainConfig":
        if self.lora is not None and self.optimizer.freeze_language:
            raise ValueError("lora trains the language model, which optimizer.freeze_language keeps as it is: leave one out")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.steps > 0) == (self.num_epochs > 0):
            raise ValueError(f"give either steps or num_epochs, got steps {self.steps} and num_epochs {self.num_epochs:g}")
        return self

    def in_steps(self, epoch_samples: int) -> "TrainConfig":
        """The same run with its length in steps; the last step of an epoch may reach into the next."""
        if self.steps:
            return self
        return self.model_copy(update={"steps": math.ceil(self.num_epochs * epoch_samples / self.batch_size), "num_epochs": 0.0})


class LaterNoise(StrictModel):
    """The noise of a stage's last steps: the release's prior_dist_2 and switch_prior_thresh."""

    name: NoiseName
    after: float = Field(gt=0.0, lt=1.0, description="Share of the steps before it")


class NoiseConfig(StrictModel):
    """How response blocks are corrupted (paper section 3; schedules in ``diffusion.noise``)."""

    name: NoiseName = "mask"
    schedule: NoiseSchedule = later(
        "linear",
        description="Masked share at noise level t: linear: t. cosine: 1 - cos(pi t / 2). Losses are weighed as it asks",
    )
    min_t: float = Field(0.001, ge=0.0, le=1.0, description="Least noise level of a block: for mask, the share that is masked")
    max_t: float = Field(1.0, ge=0.0, le=1.0, description="Greatest noise level of a block")
    t_power: float = later(
        1.0,
        gt=0.0,
        le=10.0,
        description="t is min_t + (max_t - min_t) u^t_power with u uniform: below 1 more heavy noise, above 1 more light noise",
    )
    complementary: bool = Field(False, description="Train on a mask and its complement against one prefix")
    then: LaterNoise | None = later(None, description="Another noise for the last steps of a stage")

    @model_validator(mode="after")
    def _mask_alone(self) -> "NoiseConfig":
        if self.schedule != "linear" and "mask" not in (self.name, self.then and self.then.name):
            raise ValueError(f"noise.schedule {self.schedule} is of mask noise; {self.name} has its own")
        if self.then is not None and self.complementary:
            raise ValueError("noise.complementary is of mask noise throughout; leave out noise.then")
        return self

    def first_later_step(self, steps: int) -> int:
        """The step from which on the later noise is used: ``steps`` where there is none."""
        return steps if self.then is None else int(steps * self.then.after)

    @property
    def later(self) -> "NoiseConfig":
        """The noise of the last steps."""
        return self if self.then is None else self.model_copy(update={"name": self.then.name, "then": None})

    @model_validator(mode="after")
    def _ordered(self) -> "NoiseConfig":
        if self.min_t >= self.max_t:
            raise ValueError(f"min_t {self.min_t} must be below max_t {self.max_t}")
        if self.complementary and self.name != "mask":
            raise ValueError(f"noise.complementary needs name: mask; {self.name} noise has no complement")
        return self


class LabModelConfig(StrictModel):
    """A stock Qwen3-VL architecture, small enough for two cores (<= 2 M parameters)."""

    hidden_size: int = Field(128, ge=16)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    kv_heads: int = Field(2, ge=1)
    head_dim: int = Field(32, ge=8)
    intermediate_size: int = Field(256, ge=16)
    vision_hidden_size: int = Field(64, ge=16)
    vision_layers: int = Field(1, ge=1)
    vision_heads: int = Field(2, ge=1)


class SourceConfig(StrictModel):
    """source: the autoregressive model everything starts from: trained in the lab, or resolved from a hub or S3."""

    model: ModelPlace = Field(
        "lab",
        description="'lab' (train from scratch), a folder, s3:// place, hub id (owner/name@revision) or registered model "
        "(models:/name@alias)",
    )
    lab_model: LabModelConfig = LabModelConfig()
    train: TrainConfig | None = Field(None, description="Required for the lab model; None for a pretrained one")

    @model_validator(mode="after")
    def _lab_trains(self) -> "SourceConfig":
        if (self.model == "lab") != (self.train is not None):
            raise ValueError("source.train is required for model 'lab' and must be absent for a pretrained model")
        if self.train is not None and self.train.lora is not None:
            raise ValueError("source.train.lora: a model that is trained from scratch has nothing to adapt")
        return self


class PBMStage(StrictModel):
    """One stage of Progressive Block Merging: a block size, or several at once ("elastic")."""

    block_size: int = Field(ge=1, le=256, description="With block_sizes: the largest of them, and need not be said")
    block_sizes: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(
        (), description="In place of block_size: drawn for each sample and epoch. The one run ends in a model of each size"
    )
    draw: SizeDraw = later(
        "uniform",
        description="Of block_sizes. growing: in the first of as many equal parts of the run as there are sizes the smallest "
        "alone, in each next part one size more",
    )
    parent: ModelReference | None = Field(
        None, description="What it starts from: source, an earlier stage (pbm-b4) or a model's place; None: the stage before"
    )
    train: TrainConfig
    data: DataConfig | None = Field(None, description="What this stage trains on; None: what all share")

    @model_validator(mode="before")
    @classmethod
    def _largest(cls, values: Any) -> Any:
        sizes = values.get("block_sizes") if isinstance(values, Mapping) else None
        if not sizes or "block_size" in values or not all(isinstance(size, int) for size in sizes):
            return values
        return {**values, "block_size": max(sizes)}

    @model_validator(mode="after")
    def _one_kind(self) -> "PBMStage":
        sizes = self.block_sizes
        if sizes and (len(sizes) == 1 or list(sizes) != sorted(set(sizes)) or sizes[-1] != self.block_size):
            raise ValueError(f"block_sizes are two or more, growing, and in place of block_size; got {list(sizes)}")
        if self.draw != "uniform" and not sizes:
            raise ValueError(f"draw: {self.draw} needs block_sizes to draw from")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """The block sizes of its models."""
        return self.block_sizes or (self.block_size,)


AR_WEIGHT = Field(
    None, ge=0.0, le=1.0, description="Share of the AR loss on a causal clean stream; None: a half, and none with 'block'"
)
TAIL_WEIGHT = "Weight of the end tokens that fill an answer's last block; they count in full where a mean is divided"


def ar_share(ar_weight: float | None, clean_attention: CleanAttention) -> float:
    """``ar_weight`` with its default: 0.5 + 0.5 as in Fast-dVLM where the clean stream is causal."""
    default = 0.5 if clean_attention == "causal" else 0.0
    return default if ar_weight is None else ar_weight


class PBMMethod(Based):
    """How Progressive Block Merging trains, whatever the block size."""

    FOLDER: ClassVar[str] = "pbm"

    noise: NoiseConfig = NoiseConfig()
    clean_attention: CleanAttention = "block"
    ar_weight: float | None = AR_WEIGHT
    reduction: Reduction = Field(
        "token_mean",
        description="token_mean: over all supervised tokens of a batch. sample_mean (the paper's): over samples, each divided by "
        "its answers' length in whole blocks, complementary copies together",
    )
    tail_weight: float = Field(0.5, ge=0.0, le=1.0, description=TAIL_WEIGHT)

    @model_validator(mode="after")
    def _causal_for_ar(self) -> "PBMMethod":
        if self.ar_weight and self.clean_attention != "causal":
            raise ValueError("pbm.ar_weight needs clean_attention: causal (a block-wise clean stream sees its own targets)")
        return self

    @property
    def ar_share(self) -> float:
        return ar_share(self.ar_weight, self.clean_attention)


class PBMConfig(PBMMethod):
    """pbm: Progressive Block Merging, each stage starting from the one before. No stages: only students are distilled."""

    stages: tuple[PBMStage, ...]

    @model_validator(mode="after")
    def _growing(self) -> "PBMConfig":
        sizes = [size for stage in self.stages for size in stage.sizes]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"pbm.stages must have growing block sizes, got {sizes}")
        return self

    @property
    def method(self) -> PBMMethod:
        """The part that every stage shares, so that adding a stage leaves the others cached."""
        return PBMMethod(**{name: getattr(self, name) for name in PBMMethod.model_fields})


class NoiseStudy(StrictModel):
    """study: one block size trained once under each noise (workflows/noises.py)."""

    noises: tuple[NoiseConfig, ...] = Field(min_length=1)
    block_size: int = Field(4, ge=1, le=256)
    method: PBMMethod = PBMMethod()
    train: TrainConfig


class SWDConfig(Based):
    """swd: Stage-Wise Distillation of students, each at its own block size, from one frozen teacher of no larger blocks."""

    FOLDER: ClassVar[str] = "swd"

    students: tuple[ModelReference, ...] = Field(
        ("pbm-b32",), description="Stages of this pipeline (pbm-b32) or places of models; none: nothing is distilled"
    )
    teacher: ModelReference = Field(
        "pbm-b4",
        description="A stage of this pipeline (source: the autoregressive model), or a model's place: folder, s3://, "
        "hub id (owner/name@revision) or registered (models:/name@alias); of any size, with the students' vocabulary",
    )
    train: TrainConfig
    data: DataConfig | None = Field(None, description="What students are distilled on; None: what all share")
    noise: NoiseConfig = NoiseConfig(min_t=0.1, max_t=0.5)
    ce_weight: float = Field(1.0, ge=0.0)
    ce_weighting: Literal["none", "inverse_t"] = Field(
        "none", description="none: plain cross entropy, as released. inverse_t: the denoising loss of pbm, for mask noise CE / t"
    )
    kl_weight: float = Field(0.5, ge=0.0, description="Of the KL, taken where the teacher has a block")
    ar_weight: float | None = AR_WEIGHT
    reduction: Reduction = Field(
        "sample_mean",
        description="sample_mean (as released): the mean of the samples' own means over supervised tokens. token_mean: the "
        "mean over all supervised tokens of a batch",
    )
    tail_weight: float = Field(1.0, ge=0.0, le=1.0, description=f"{TAIL_WEIGHT}; the release halves them in pbm only")
    top_k: int = Field(16, ge=1)
    direction: Literal["forward", "reverse"] = "forward"
    temperature: float = Field(1.0, gt=0.0)
    targets: Literal["online", "offline"] = Field(
        "online", description="Ask the teacher in every step, or once for all runs on the same data, noise and teacher"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> "SWDConfig":
        if self.ce_weight == self.kl_weight == 0:
            raise ValueError("swd.ce_weight and swd.kl_weight are both 0: there is nothing to distil")
        if self.noise.then is not None and self.targets == "offline":
            raise ValueError("swd.targets offline keeps answers under one noise: set it online, or leave out swd.noise.then")
        return self

    @property
    def method(self) -> "SWDConfig":
        """Without whom and on what, which a student's key has as artifacts, so that one more leaves the others cached."""
        return self.model_copy(update={"students": (), "teacher": "source", "data": None})


class DecodingConfig(StrictModel):
    """How a checkpoint decodes when it is judged."""

    strategy: Literal["dynamic", "static", "self_speculative"] = Field(
        "dynamic",
        description="self_speculative: a model whose clean stream is causal drafts in blocks what its AR mode would say",
    )
    confidence_threshold: float = Field(0.9, gt=0.0, le=1.0)
    denoising_steps: int | None = Field(None, ge=1, description="Steps a block; None: the block size")
    revision_threshold: float | None = later(
        None, gt=0.0, le=1.0, description="Open tokens again, once, whose probability falls below; for uniform, edit or mix noise"
    )
    max_new_tokens: int = Field(256, ge=1)
    compiled: bool = Field(
        False,
        description="Decode blocks through torch.compile (CUDA graphs on a GPU); a shape's first decode takes up to a minute",
    )


class EvaluationConfig(StrictModel):
    """evaluate: lmms-eval suite and decoding."""

    suite: str = Field("lab", min_length=1, description="A folder of bard_core/evaluation/suites")
    decoding: DecodingConfig = DecodingConfig()
    batch_size: int = Field(32, ge=1, description="Prompts a batch when accuracy is measured")
    max_samples: int | None = Field(None, ge=1, description="Judge at most this many samples; None: all")
    speed_samples: int = Field(16, ge=1, description="Prompts decoded one by one, interleaved with the AR baseline")
    sweep_thresholds: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (),
        description="More confidence thresholds at which block-diffusion models are judged, for the speed-up at equal accuracy",
    )


class CheckpointConfig(StrictModel):
    """Where training keeps its checkpoints, how many, and how much of them it believes."""

    root_uri: Place = Field("", description="Folder that every worker reaches, or s3:// prefix; empty: $BARD_HOME/checkpoints")
    keep_last: int = Field(2, ge=1, description="Newest checkpoints of a run to keep")
    keep_best: int = Field(
        0, ge=0, description="Checkpoints to keep besides: those with the lowest loss, held-out where train.validate_every looks"
    )
    verify_sha256: bool = Field(True, description="Hash every shard before resuming; False: sizes, and .metadata's hash")


class GateConfig(StrictModel):
    """promote: what a challenger must show to become the champion."""

    accuracy_margin: float = Field(
        0.02, ge=0.0, le=1.0, description="Loss of accuracy against champion and source that is accepted, a share; 95 % sure"
    )
    min_speed_gain: float = Field(0.0, ge=0.0, description="Share by which the speed-up must exceed the champion's; 95 % sure")


PodStage = Literal["control", "prepare", "resolve", "consolidate", "evaluate", "report"]


class PodConfig(StrictModel):
    """What the pod of one task asks for, and gets no more of."""

    cpu: int = Field(2, ge=1)
    memory_gib: int = Field(4, ge=1)
    disk_gib: int = Field(10, ge=1, description="Ephemeral storage: the container's own writable files")
    shared_memory_gib: int = Field(1, ge=1, description="/dev/shm, part of the memory")
    gpus: int = Field(0, ge=0)
    timeout_h: float = Field(24.0, gt=0.0, description="The task is ended after this long")


class NodeConfig(StrictModel):
    """One training node: its pod takes the whole of it. Without GPUs, one pod takes what all workers need."""

    gpus: int = Field(8, ge=1, description="GPUs a node, one worker each")
    cpu: int = Field(96, ge=1)
    memory_gib: int = Field(800, ge=1)
    disk_gib: int = Field(500, ge=1)
    shared_memory_gib: int = Field(64, ge=1)


class PlaceConfig(StrictModel):
    """Where the pods may stand."""

    selector: dict[str, str] = Field({}, description="Labels that a training or GPU node must have")
    tolerations: tuple[str, ...] = Field(("nvidia.com/gpu",), description="Taints, by key, that GPU pods tolerate")
    spot: bool = Field(False, description="Training may run on nodes that are taken away; it goes on from a checkpoint")
    queue: str = Field("", description="Kueue's local queue; empty: none")


class ParallelConfig(StrictModel):
    """How the workers of a stage divide and run its model. It changes speed and memory; results only by rounding."""

    shard_over: Literal["all", "node"] = Field(
        "all", description="Whom the model is sharded over: all workers, or those of a node, which then replicate one another"
    )
    compile_layers: bool = Field(
        False, description="Decoder layers through torch.compile: faster steps on a GPU, minutes until the first one is done"
    )


class ComputeConfig(StrictModel):
    """Where stages run. Not part of any cache key: the same step on other hardware is the same step."""

    num_workers: int | tuple[int, int] = Field(2, description="Ray Train workers; [fewest, most] follows the cluster's size")
    use_gpu: bool = False
    cpus_per_worker: int = Field(1, ge=1)
    prepare_tasks: int = Field(1, ge=1, description="Tasks that share the raw shards of prepare; each uses all its cores")
    judge_tasks: int = Field(1, ge=1, description="Tasks that share each benchmark's samples; each uses all its GPUs")
    data_workers: int | None = Field(
        None, ge=0, description="Processes a worker that load data ahead; None: all its CPUs but one, so none on a laptop"
    )
    data_cache_gib: float = Field(100.0, gt=0.0, description="Disk on each node for data fetched from elsewhere")
    max_failures: int = Field(2, ge=0, description="Worker failures a stage survives; nodes taken away are not counted")
    stop_within_s: float = Field(90.0, gt=0.0, description="After SIGTERM, the longest wait for a last checkpoint")
    checkpoints: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()
    node: NodeConfig = Field(NodeConfig(), description="A training node of the cluster")
    pods: dict[PodStage, PodConfig] = Field({}, description="What the pods of the other stages ask for, in place of the defaults")
    place: PlaceConfig = PlaceConfig()

    @property
    def most_workers(self) -> int:
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def fewest_workers(self) -> int:
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def loaders(self) -> int:
        """``data_workers`` with its default."""
        return self.cpus_per_worker - 1 if self.data_workers is None else self.data_workers

    @model_validator(mode="after")
    def _workers(self) -> "ComputeConfig":
        fewest, most = self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)
        if not 1 <= fewest <= most:
            raise ValueError(f"compute.num_workers is a count or [fewest, most] with 1 <= fewest <= most, got {self.num_workers}")
        return self
