"""A stage's identity: all that decides its result. Its digest names the run, so the same spec resumes it and no other does."""

from collections.abc import Sequence
from typing import Literal

from pydantic import ValidationInfo, field_validator

from bard_core.config.sections.compute import CheckpointConfig
from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.pbm import PBMMethod, ar_share
from bard_core.config.sections.source import LabModelConfig, SourceConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.config.sections.train import TrainConfig
from bard_core.config.strict import StrictModel, later
from bard_core.config.versions import VERSIONS
from bard_core.diffusion.names import Reduction, SizeDraw, TrainedAttention
from bard_core.store import artifacts, storage
from bard_core.store.refs import CheckpointRef, DatasetRef, ModelRef
from bard_core.training.checkpoints import retention
from bard_core.training.checkpoints.writer import Run
from bard_core.training.curve import CURVE


class StageSpec(StrictModel):
    """All that decides a stage's result; its digest names the run."""

    stage: Literal["source", "pbm", "swd"]
    dataset: DatasetRef
    train: TrainConfig
    parent: ModelRef | None = None
    lab_model: LabModelConfig | None = None
    block_size: int = 1
    block_sizes: tuple[int, ...] = ()
    draw: SizeDraw = later("uniform")
    clean_attention: TrainedAttention = "block"
    noise: NoiseConfig = NoiseConfig()
    ar_weight: float = 0.0
    reduction: Reduction = "token_mean"
    tail_weight: float = 0.5
    swd: SWDConfig | None = None
    teacher: ModelRef | None = None

    @field_validator("train")
    @classmethod
    def _in_steps(cls, train: TrainConfig, info: ValidationInfo) -> TrainConfig:
        """Epochs become steps of this dataset: the run is the same however its length was said."""
        dataset = info.data.get("dataset")
        return train.in_steps(dataset.epoch_samples) if dataset else train

    @field_validator("swd")
    @classmethod
    def _same_length(cls, swd: SWDConfig | None, info: ValidationInfo) -> SWDConfig | None:
        return swd.model_copy(update={"train": info.data["train"]}) if swd and "train" in info.data else swd

    @property
    def origin(self) -> dict[str, str]:
        """All that decides the result: the code, the digest of the knobs, and those of the artifacts the run starts from."""
        refs = {name: ref.key if (ref := getattr(self, name)) else "none" for name in ("dataset", "parent", "teacher")}
        return {
            "code": f"{self.stage} {VERSIONS[self.stage]}",
            "config": artifacts.digest(self.model_dump(exclude={"dataset", "parent", "teacher"})),
            **refs,
        }

    @property
    def digest(self) -> str:
        return artifacts.digest(self.origin)

    @property
    def name(self) -> str:
        if self.stage == "source":
            return "source"
        sizes = "-".join(map(str, self.block_sizes or (self.block_size,)))
        kind = f"{self.stage}-b{sizes}" + ("" if self.draw == "uniform" else f"-{self.draw}")
        return kind + ("" if self.noise.name == "mask" else f"-{self.noise.name}")


def source_spec(source: SourceConfig, dataset: DatasetRef) -> StageSpec:
    """The lab's source model, from scratch on the AR objective.

    Raises:
        ValueError: the configuration names a pretrained source.
    """
    if source.train is None:
        raise ValueError(f"source.model is {source.model!r}, which is not trained here; only 'lab' is")
    return StageSpec(stage="source", dataset=dataset, train=source.train, lab_model=source.lab_model, clean_attention="causal")


def pbm_spec(
    method: PBMMethod,
    block_sizes: Sequence[int],
    train: TrainConfig,
    dataset: DatasetRef,
    parent: ModelRef,
    draw: SizeDraw = "uniform",
) -> StageSpec:
    """``parent`` learns to denoise blocks of one size, or of several that are drawn for each sample and epoch (see ``PBMStage``).

    Raises:
        ValueError: the parent's blocks are larger.
    """
    block_size = max(block_sizes)
    if parent.block_size > block_size:
        raise ValueError(f"{parent.uri} has blocks of {parent.block_size}; a stage of {block_size} merges smaller ones")
    return StageSpec(
        stage="pbm",
        dataset=dataset,
        train=train,
        parent=parent,
        block_size=block_size,
        block_sizes=tuple(block_sizes) if len(block_sizes) > 1 else (),
        draw=draw,
        clean_attention=method.clean_attention,
        noise=method.noise,
        ar_weight=method.ar_share,
        reduction=method.reduction,
        tail_weight=method.tail_weight,
    )


def swd_spec(
    config: SWDConfig, clean_attention: TrainedAttention, dataset: DatasetRef, student: ModelRef, teacher: ModelRef
) -> StageSpec:
    """``student`` is distilled at its own block size from the frozen ``teacher``, which may be an autoregressive model.

    Raises:
        ValueError: the student is autoregressive, or the teacher's blocks are larger.
    """
    if student.block_size == 1:
        raise ValueError(f"swd.student {student.uri} is autoregressive; give a model that was trained on blocks")
    if teacher.block_size > student.block_size:
        raise ValueError(
            f"swd.teacher {teacher.uri} has blocks of {teacher.block_size}, larger than the {student.block_size} of its student "
            f"{student.uri}"
        )
    return StageSpec(
        stage="swd",
        dataset=dataset,
        train=config.train,
        parent=student,
        block_size=student.block_size,
        clean_attention=clean_attention,
        noise=config.noise,
        ar_weight=ar_share(config.ar_weight, clean_attention),
        reduction=config.reduction,
        tail_weight=config.tail_weight,
        swd=config.method,
        teacher=teacher,
    )


def run_of(spec: StageSpec, settings: CheckpointConfig = CheckpointConfig()) -> Run:
    """Where the run of this spec keeps its base model, checkpoints and curve, and what it starts from."""
    root = settings.root_uri or str(storage.home() / "checkpoints")
    return Run(storage.join(root, f"{spec.name}-{spec.digest[:16]}"), spec.origin, settings)


def checkpoint_ref(spec: StageSpec, base: str, uri: str) -> CheckpointRef:
    """The ref of a finished run's final checkpoint, which is registered with it: retention will not delete it."""
    retention.keep(uri, f"the result of {spec.name}")
    return final_ref(spec, base, uri)


def final_ref(spec: StageSpec, base: str, uri: str) -> CheckpointRef:
    """The same, only looked at."""
    manifest = artifacts.read_manifest(uri)
    return CheckpointRef(
        uri=uri,
        manifest_sha256=manifest.digest,
        stage=spec.stage,
        block_size=spec.block_size,
        step=int(manifest.step or 0),
        base_uri=base,
        parent_sha256=spec.parent.key if spec.parent else None,
        curve_uri=storage.join(uri.rsplit("/", 1)[0], CURVE),
        precision=spec.train.precision,
    )
