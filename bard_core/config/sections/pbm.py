"""Progressive Block Merging: its stages, and what they share."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from bard_core.config.bases import Based
from bard_core.config.references import ModelReference
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.train import TrainConfig
from bard_core.config.strict import StrictModel, later
from bard_core.diffusion.names import Reduction, SizeDraw, TrainedAttention


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


def ar_share(ar_weight: float | None, clean_attention: TrainedAttention) -> float:
    """``ar_weight`` with its default: 0.5 + 0.5 as in Fast-dVLM where the clean stream is causal."""
    default = 0.5 if clean_attention == "causal" else 0.0
    return default if ar_weight is None else ar_weight


class PBMMethod(Based):
    """How Progressive Block Merging trains, whatever the block size."""

    FOLDER: ClassVar[str] = "pbm"

    noise: NoiseConfig = NoiseConfig()
    clean_attention: TrainedAttention = Field(
        "block",
        description="What the clean stream sees: whole blocks (the paper), or tokens before its own. released: whole blocks and "
        "their noisy copies, as the released code trains; decoding has none, and is by whole blocks",
    )
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
