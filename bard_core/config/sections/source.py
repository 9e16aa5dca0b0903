"""The autoregressive model that everything starts from."""

from pydantic import Field, model_validator

from bard_core.config.references import ModelPlace
from bard_core.config.sections.train import TrainConfig
from bard_core.config.strict import StrictModel


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
