"""Stage-Wise Distillation."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from bard_core.config.bases import Based
from bard_core.config.references import ModelReference
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.pbm import AR_WEIGHT, TAIL_WEIGHT
from bard_core.config.sections.train import TrainConfig
from bard_core.diffusion.names import Reduction


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
