"""One run of the training loop, its optimizer and its adapters."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from bard_core.config.bases import Based
from bard_core.config.strict import StrictModel, later

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
