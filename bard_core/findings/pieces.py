"""Claims cut into pieces of work: datasets, trainings and judgements, each named by all that decides it.

A piece that several variants or claims share has one key, and so is done once. What a piece made is a small JSON file of refs and
numbers in the home folder, which the next run finds.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bard_core.config.file import PipelineConfig
from bard_core.config.references import pbm_stage
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.config.sections.pbm import PBMMethod, PBMStage
from bard_core.config.sections.source import SourceConfig
from bard_core.config.sections.storage import StorageConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.config.versions import VERSIONS, Code
from bard_core.diffusion.names import TrainedAttention
from bard_core.findings.spec import SOURCE, Borrowed, Claim, trained_models
from bard_core.store import artifacts, storage


class Work(BaseModel):
    """A piece: ``needs`` are the keys of those it starts from, ``cost`` about how many training steps it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    needs: tuple[str, ...] = ()
    cost: int

    @property
    def key(self) -> str:
        """The digest of all that decides what comes of it, the code too; its name and cost do not."""
        decides = [getattr(self, name) for name in type(self).model_fields if name not in ("name", "cost")]
        return artifacts.digest([[VERSIONS[code] for code in CODES[type(self).__name__]], *decides])

    def place(self, at: StorageConfig) -> str:
        """Where what came of it is kept."""
        return storage.join(storage.root_uri(at), "artifacts", "findings", f"{type(self).__name__.lower()}-{self.key[:16]}.json")


class Prepared(Work):
    """A dataset."""

    kind: Literal["dataset"] = "dataset"
    data: DataConfig


class SourceTraining(Work):
    """needs: dataset."""

    kind: Literal["source"] = "source"
    source: SourceConfig


class BlockTraining(Work):
    """needs: dataset, parent. ``parent``: the parent's model."""

    kind: Literal["pbm"] = "pbm"
    method: PBMMethod
    stage: PBMStage
    parent: str


class Distillation(Work):
    """needs: dataset, student, teacher. ``student``, ``teacher``: their models."""

    kind: Literal["swd"] = "swd"
    swd: SWDConfig
    clean_attention: TrainedAttention
    student: str
    teacher: str


class Judgement(Work):
    """needs: dataset, source, training of the model."""

    kind: Literal["judged"] = "judged"
    evaluation: EvaluationConfig
    model: str


CODES: dict[str, tuple[Code, ...]] = {
    "Prepared": ("prepare",),
    "SourceTraining": ("source", "consolidate"),
    "BlockTraining": ("pbm", "consolidate"),
    "Distillation": ("swd", "teacher", "consolidate"),
    "Judgement": ("answers", "evaluate"),
}
Piece = Annotated[Prepared | SourceTraining | BlockTraining | Distillation | Judgement, Field(discriminator="kind")]
JUDGED_COST = 60  # steps of training that take about as long as judging one model


class Recipe(BaseModel):
    """What one variant of a claim asks for with one seed: its trainings by model, in order, and its judgements by model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str
    variant: str
    seed: int
    pieces: tuple[Piece, ...]
    trained: dict[str, str]
    judged: dict[str, str]


def recipe(claim: Claim, variant: str, seed: int) -> Recipe:
    """The pieces of one variant with one seed, each after those it needs, also those of what it borrows."""
    config = claim.pipeline(variant, seed)
    pieces: list[Any] = []

    def add(piece: Work) -> str:
        pieces.append(piece)
        return piece.key

    def dataset(data: DataConfig, name: str) -> str:
        return add(Prepared(name=name, data=data, cost=20))

    def borrow(other: Borrowed) -> dict[str, str]:
        pieces.extend((theirs := recipe(claim, other.variant, seed)).pieces)
        return theirs.trained

    shared = dataset(config.data, "dataset")
    trained = {SOURCE: add(_source(config, shared, seed))}
    latest, start = SOURCE, trained[SOURCE]
    if (other := claim.parents.get(variant)) is not None:
        latest, start = other.model, borrow(other)[other.model]
    method = config.pbm.method
    for stage in config.pbm.stages:
        own = dataset(stage.data, "dataset of a stage") if stage.data else shared
        parent, begun = (stage.parent, trained[stage.parent]) if stage.parent else (latest, start)
        bare = stage.model_copy(update={"parent": None, "data": None})  # said by the keys of what it needs
        needs = (own, begun)
        steps = stage.train.steps
        name = f"{pbm_stage(*stage.sizes)}, seed {seed}"
        done = add(BlockTraining(name=name, needs=needs, method=method, stage=bare, parent=parent, cost=steps))
        trained |= {pbm_stage(size): done for size in stage.sizes}
        latest, start = pbm_stage(stage.sizes[-1]), done
    teacher, taught_by = config.swd.teacher, trained
    if (other := claim.teachers.get(variant)) is not None:
        teacher, taught_by = other.model, borrow(other)
    on = dataset(config.swd.data, "dataset of swd") if config.swd.data and config.swd.students else shared
    for student in config.swd.students:
        swd = Distillation(
            name=f"{student.replace('pbm', 'swd')}, seed {seed}",
            needs=(on, trained[student], taught_by[teacher]),
            swd=config.swd.method,
            clean_attention=config.pbm.clean_attention,
            student=student,
            teacher=teacher,
            cost=config.swd.train.steps * 3 // 2,
        )
        trained[student.replace("pbm", "swd", 1)] = add(swd)
    evaluation = config.evaluation.model_copy(update={"sweep_thresholds": claim.thresholds})
    asked = dataset(_held_out(config, claim), f"{claim.held_out} images")
    judged = {}
    for model in (SOURCE, *(claim.models or trained_models(config))):
        if model in trained:
            three = (asked, trained[SOURCE], trained[model])
            said: dict[str, Any] = {"name": f"judge {model}, seed {seed}", "cost": JUDGED_COST}
            judged[model] = add(Judgement(**said, needs=three, evaluation=evaluation, model=model))
    return Recipe(claim=claim.name, variant=variant, seed=seed, pieces=tuple(pieces), trained=trained, judged=judged)


def _source(config: PipelineConfig, dataset: str, seed: int) -> SourceTraining:
    assert config.source.train is not None
    return SourceTraining(name=f"source, seed {seed}", needs=(dataset,), source=config.source, cost=config.source.train.steps)


def _held_out(config: PipelineConfig, claim: Claim) -> DataConfig:
    """The data with the images that the claim is judged on held out; what is trained on is the same."""
    assert config.data.lab is not None
    world = config.data.lab.model_copy(update={"held_out": claim.held_out})
    return config.data.model_copy(update={"lab": world})


def recipes(claims: Sequence[Claim], seeds: Sequence[int] = (), variants: Sequence[str] = ()) -> list[Recipe]:
    """Of every claim, variant and seed; ``seeds`` and ``variants``: of those only. All claims' first seeds come first."""
    wanted = [
        (place, claim, variant, seed)
        for claim in claims
        for variant in claim.variants
        if not variants or variant in variants
        for place, seed in enumerate(claim.seeds)
        if not seeds or seed in seeds
    ]
    return [recipe(claim, variant, seed) for _, claim, variant, seed in sorted(wanted, key=lambda item: item[0])]


def distinct(found: Iterable[Recipe]) -> dict[str, Any]:
    """All pieces of these recipes by key, each once and after those it needs."""
    pieces: dict[str, Any] = {}
    for one in found:
        for piece in one.pieces:
            pieces.setdefault(piece.key, piece)
    return pieces
