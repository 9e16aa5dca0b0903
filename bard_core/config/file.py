"""A whole configuration file: its sections, what one of them cannot know of the others, and how it is read."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from bard_core.config.sections import (
    ComputeConfig,
    DataConfig,
    DecodingConfig,
    EvaluationConfig,
    GateConfig,
    PBMConfig,
    SourceConfig,
    StorageConfig,
    SWDConfig,
    TrackingConfig,
)
from bard_core.config.strict import StrictModel


def check_stages(pbm: PBMConfig, swd: SWDConfig, decoding: DecodingConfig) -> None:
    """What one section cannot know alone: every student and the teacher of distillation come out of a PBM stage, and keep
    their AR mode only if that stage's clean stream has one; and every model can decode as it will be judged.

    Raises:
        ValueError: naming the key and what is allowed.
    """
    if swd.ar_weight and pbm.clean_attention != "causal":
        raise ValueError("swd.ar_weight needs pbm.clean_attention: causal (a block-wise clean stream sees its own targets)")
    if decoding.strategy == "self_speculative" and pbm.clean_attention != "causal":
        raise ValueError(
            "evaluation.decoding.strategy self_speculative needs pbm.clean_attention: causal (it verifies in AR mode)"
        )
    sizes = [stage.block_size for stage in pbm.stages]
    if decoding.denoising_steps is not None and decoding.denoising_steps > sizes[0]:
        raise ValueError(
            f"evaluation.decoding.denoising_steps is {decoding.denoising_steps}, more than the smallest block of pbm.stages, "
            f"{sizes[0]}"
        )
    for key, wanted in (("teacher_block_size", (swd.teacher_block_size,)), ("block_sizes", swd.block_sizes)):
        if missing := [size for size in wanted if size not in sizes]:
            raise ValueError(f"swd.{key} names {missing[0]}, which no entry of pbm.stages trains; allowed are {sizes}")
    if small := [size for size in swd.block_sizes if size <= swd.teacher_block_size]:
        raise ValueError(
            f"swd.block_sizes names {small[0]}; a student's blocks are larger than its teacher's, {swd.teacher_block_size}"
        )


def check_data(data: DataConfig, pbm: PBMConfig, swd: SWDConfig) -> None:
    """Stages with data of their own train the same model, so its processor is the same.

    Raises:
        ValueError: naming the key and what is allowed.
    """
    stages = {f"pbm.stages of block size {stage.block_size}": stage.data for stage in pbm.stages} | {"swd": swd.data}
    for where, own in stages.items():
        if own is not None and own.processor != data.processor:
            raise ValueError(f"{where}: data.processor is {own.processor!r}; all stages share data.processor, {data.processor!r}")


class PipelineConfig(StrictModel):
    """A whole configuration file: the inputs of ``workflows/pipeline.py:bard_pipeline``."""

    name: str = Field(min_length=1)
    data: DataConfig
    source: SourceConfig
    pbm: PBMConfig
    swd: SWDConfig
    evaluation: EvaluationConfig
    gate: GateConfig = GateConfig()
    compute: ComputeConfig = ComputeConfig()
    storage_config: StorageConfig = StorageConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _students_are_trained(self) -> "PipelineConfig":
        check_stages(self.pbm, self.swd, self.evaluation.decoding)
        check_data(self.data, self.pbm, self.swd)
        return self


def read_yaml(path: Path) -> Any:
    """Raises ValueError when the file is not YAML, saying where; OSError when there is no such file."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error


def read_pipeline(path: Path) -> PipelineConfig:
    """Read a configuration file.

    Raises:
        ValueError: it is not YAML, or naming each fault (ValidationError). OSError: there is no such file.
    """
    return PipelineConfig.model_validate(read_yaml(path))
