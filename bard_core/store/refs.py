"""What travels between tasks in place of bytes. A ref names a folder and its manifest's sha256: the same ref, the same bytes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Ref(Frozen):
    """Where an artifact is, and the sha256 of its manifest."""

    uri: str
    manifest_sha256: str

    @property
    def key(self) -> str:
        """Content hash that a cache may use."""
        return self.manifest_sha256


class DatasetRef(Ref):
    """A prepared dataset. ``system_prompt`` leads its samples that brought no system turn; models trained on it record it.

    ``epoch_samples``: how many samples an epoch has, each training sample as often as its source's weight says.
    """

    num_train: int
    num_eval: int
    epoch_samples: int
    system_prompt: str | None = None


class UnitRef(Frozen):
    """One prepared raw shard, by the name it has beside its dataset; how many rows and bytes it holds."""

    name: str
    manifest_sha256: str
    rows: int
    bytes: int


class UnitsRef(Frozen):
    """The units that one of several tasks made: those of every ``of``-th shard, from shard ``group`` on."""

    group: int
    of: int
    units: tuple[UnitRef, ...]


class LooksRef(Ref):
    """How the images look that a suite's benchmarks ask about."""

    suite: str


class StageRef(Ref):
    """What a training stage made. ``block_size`` is 1 for an autoregressive source."""

    stage: Literal["source", "pbm", "swd"]
    block_size: int
    parent_sha256: str | None

    @property
    def name(self) -> str:
        """How people call it: ``source``, ``pbm-b8``, ``swd-b32``."""
        return "source" if self.stage == "source" else f"{self.stage}-b{self.block_size}"


class ModelRef(StageRef):
    """A model in Hugging Face format."""

    curve_uri: str | None = None


class CheckpointRef(StageRef):
    """The final checkpoint of a training run, with what consolidation needs to know of it. ``precision``: of its forwards."""

    step: int
    base_uri: str
    curve_uri: str
    precision: Literal["float32", "bfloat16"] = "float32"

    def of_size(self, block_size: int | None) -> "CheckpointRef":
        """The same, to become a model of this block size, one of those it was trained on; None: the largest."""
        return self if block_size is None else self.model_copy(update={"block_size": block_size})

    def model(self, uri: str, manifest_sha256: str) -> ModelRef:
        """The ref of the model that it became."""
        shared = self.model_dump(include=set(ModelRef.model_fields) - set(Ref.model_fields))
        return ModelRef(uri=uri, manifest_sha256=manifest_sha256, **shared)


class OperatingPoint(Frozen):
    """A model judged at one confidence threshold; None: the decoding has none, as self-speculation."""

    confidence_threshold: float | None
    accuracy: float
    tokens_per_forward: float
    tokens_per_s: float
    speedup: float


class BenchmarkScore(Frozen):
    """A model's score on one benchmark of a suite.

    ``metrics`` are lmms-eval's own numbers; ``accuracy`` is the share of a perfect score (0 to 1). ``crashed`` samples count as
    wrong. ``dataset_fingerprint`` is a hash of every prompt asked, images included, and of its reference.
    """

    name: str
    task: str
    task_version: str
    prompt: str | None
    metrics: dict[str, float]
    accuracy: float
    accuracy_stderr: float
    num_samples: int
    crashed: int
    real_tokens: int
    forwards: int
    dataset_fingerprint: str


class BenchmarkRef(Ref):
    """One judged benchmark: lmms-eval's own result files and ``samples.jsonl``."""

    model_sha256: str
    score: BenchmarkScore


class EvalResult(Ref):
    """A model's judgement by one suite. Speeds are tokens a second at batch 1; ``speedup`` is over the source's AR decoding.

    ``sweep`` has the same model at several thresholds, this one's among them; empty where none were asked for.
    ``accuracy`` is the mean of the benchmarks' accuracies. ``missing`` names benchmarks that failed: the run is then partial.
    """

    model: ModelRef
    suite: str
    suite_digest: str
    benchmarks: tuple[BenchmarkScore, ...] = ()
    missing: tuple[str, ...] = ()
    accuracy: float
    accuracy_stderr: float
    num_samples: int
    tokens_per_forward: float
    tokens_per_s: float
    ar_tokens_per_s: float
    speedup: float
    sweep: tuple[OperatingPoint, ...] = ()

    @property
    def complete(self) -> bool:
        """Every benchmark of the suite gave a score and no sample crashed."""
        return not self.missing and not any(score.crashed for score in self.benchmarks)


class ReportRef(Ref):
    """A report; ``markdown`` is the uri of its report.md."""

    markdown: str
