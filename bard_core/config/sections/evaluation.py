"""How a checkpoint is judged, and what makes it the champion."""

from typing import Annotated, Literal

from pydantic import Field

from bard_core.config.strict import StrictModel, later


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


class GateConfig(StrictModel):
    """promote: what a challenger must show to become the champion."""

    accuracy_margin: float = Field(
        0.02, ge=0.0, le=1.0, description="Loss of accuracy against champion and source that is accepted, a share; 95 % sure"
    )
    min_speed_gain: float = Field(0.0, ge=0.0, description="Share by which the speed-up must exceed the champion's; 95 % sure")
