"""A whole configuration file: its sections, what one of them cannot know of the others, and how it is read."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from bard_core.config.references import FORMS, block_size_of, is_stage, pbm_stage
from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.evaluation import DecodingConfig, EvaluationConfig, GateConfig
from bard_core.config.sections.pbm import PBMConfig
from bard_core.config.sections.source import SourceConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.config.strict import Name, StrictModel

STAGE_FAULTS = "stage_faults"  # the type of pydantic's error; its context holds the faults
Fault = tuple[str, str]  # a dotted key, and what is wrong with it


def check_stages(pbm: PBMConfig, swd: SWDConfig, decoding: DecodingConfig) -> None:
    """Raises ValueError where ``stage_faults`` finds any, naming each key and what is allowed."""
    if found := [f"{key} {problem}" for key, problem in stage_faults(pbm, swd, decoding)]:
        raise ValueError("; ".join(found))


def stage_faults(pbm: PBMConfig, swd: SWDConfig, decoding: DecodingConfig) -> Iterator[Fault]:
    """What one section cannot know alone: a model that is named as a stage comes out of one, students' blocks are no smaller than
    their teacher's, an AR mode is kept only where the clean stream is causal; and every model can decode as it will be judged.
    """
    stages = [pbm_stage(size) for stage in pbm.stages for size in stage.sizes]
    if not stages and not swd.students:
        yield "pbm.stages", "is empty, and so is swd.students: there is nothing to train"
    if swd.ar_weight and pbm.clean_attention != "causal":
        yield "swd.ar_weight", "needs pbm.clean_attention: causal (a block-wise clean stream sees its own targets)"
    if decoding.strategy == "self_speculative" and pbm.clean_attention != "causal":
        yield "evaluation.decoding.strategy", "self_speculative needs pbm.clean_attention: causal (it verifies in AR mode)"
    if decoding.strategy == "self_speculative" and decoding.revision_threshold is not None:
        yield "evaluation.decoding.revision_threshold", "has no meaning with strategy self_speculative, which verifies its tokens"
    sizes = [size for name in (*stages, *swd.students) if (size := block_size_of(name)) is not None]
    if sizes and (steps := decoding.denoising_steps) is not None and steps > min(sizes):
        yield "evaluation.decoding.denoising_steps", f"is {steps}, more than the smallest block that is trained, {min(sizes)}"
    for number, stage in enumerate(pbm.stages):
        before = [pbm_stage(size) for earlier in pbm.stages[:number] for size in earlier.sizes]
        yield from _unknown_stage(f"pbm.stages.{number}.parent", stage.parent, ["source", *before])
    if swd.students:
        yield from _unknown_stage("swd.teacher", swd.teacher, ["source", *stages])
    for number, student in enumerate(swd.students):
        key = f"swd.students.{number}"
        yield from _unknown_stage(key, student, stages)
        if student in swd.students[:number]:
            yield key, f"names {student} a second time"
        if student == swd.teacher:
            yield key, f"names {student}, which is swd.teacher: nobody learns from itself"
        mine, least = block_size_of(student), block_size_of(swd.teacher)
        if mine is not None and least is not None and mine < least:
            yield key, f"names {student}; a student's blocks are no smaller than its teacher's, {least}"


def _unknown_stage(key: str, reference: str | None, known: list[str]) -> Iterator[Fault]:
    if reference is not None and is_stage(reference) and reference not in known:
        yield key, f"names {reference}, which is none of {', '.join(known) or 'no stages'}; or give {FORMS}"


def check_data(data: DataConfig, pbm: PBMConfig, swd: SWDConfig) -> None:
    """Raises ValueError where ``data_faults`` finds any, naming each key and what is allowed."""
    if found := [f"{key} {problem}" for key, problem in data_faults(data, pbm, swd)]:
        raise ValueError("; ".join(found))


def data_faults(data: DataConfig, pbm: PBMConfig, swd: SWDConfig) -> Iterator[Fault]:
    """Stages with data of their own train the same model, so its processor is the same."""
    stages = {f"pbm.stages.{number}.data": stage.data for number, stage in enumerate(pbm.stages)} | {"swd.data": swd.data}
    for key, own in stages.items():
        if own is not None and own.processor != data.processor:
            yield f"{key}.processor", f"is {own.processor!r}; all stages share data.processor, {data.processor!r}"


class PipelineConfig(StrictModel):
    """A whole configuration file: the inputs of ``workflows/pipeline.py:bard_pipeline``."""

    name: Name
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
        found = [*stage_faults(self.pbm, self.swd, self.evaluation.decoding), *data_faults(self.data, self.pbm, self.swd)]
        if found:
            said = "; ".join(f"{key} {problem}" for key, problem in found)
            raise PydanticCustomError(STAGE_FAULTS, "{said}", {"said": said, "faults": found})
        return self


def shown(sections: Mapping[str, StrictModel]) -> dict[str, Any]:
    """Sections as plain values, without what is a default: what a report shows, and compares with the last one's."""
    return {name: value.model_dump(mode="json", exclude_defaults=True) for name, value in sections.items()}


def read_yaml(path: Path) -> Any:
    """Raises ValueError when the file is not YAML, saying where; OSError when there is no such file."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error
