"""What a start of the pipeline will find done, what it will go on with, what it will run, and about how long that takes.

    bard plan configs/lab.yaml

It walks the pipeline as ``workflows/pipeline.py`` composes it and looks for every stage's artifact under the name that its task
gives it (``store.places``). Nothing is made, hashed or set aside, so a damaged artifact that still has its size counts as kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from bard_core.config.file import PipelineConfig, shown
from bard_core.config.references import block_size_of, pbm_stage
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.data.inputs import InputError, found_model, in_role, raw_inputs, written_model
from bard_core.evaluation.benchmark import judged_key
from bard_core.evaluation.looks import looks_key
from bard_core.evaluation.suites import suite_of
from bard_core.store import artifacts, places, storage, times
from bard_core.store.artifacts import Manifest
from bard_core.store.refs import CheckpointRef, DatasetRef, LooksRef, ModelRef, Ref
from bard_core.store.times import Took
from bard_core.tracking import TrackingError
from bard_core.training.checkpoints import retention
from bard_core.training.spec import StageSpec, final_ref, pbm_spec, run_of, source_spec, swd_spec

Kind = Literal["prepare", "source", "train", "evaluate", "report"]


@dataclass(frozen=True)
class Item:
    """One stage. ``todo`` of its ``units`` are ahead (steps of training; 1 for the rest), which takes about ``seconds``.

    ``seconds`` is None where nothing of the kind has run here yet.
    """

    name: str
    kind: Kind
    todo: int
    units: int
    seconds: float | None

    @property
    def kept(self) -> bool:
        return self.todo == 0

    @property
    def words(self) -> str:
        """``kept``, ``continues at step 350`` or ``runs``."""
        if self.kept:
            return "kept"
        if self.todo < self.units:
            return f"continues at step {self.units - self.todo}"
        return "runs"


@dataclass(frozen=True)
class Forecast:
    """All stages in the order of the pipeline. ``note``: why some of them could not be looked for."""

    items: tuple[Item, ...]
    note: str = ""

    @property
    def lines(self) -> list[str]:
        """For the terminal: a line a stage with its judgement, then how long it all takes."""
        if not self.items:
            return [f"what stands is not known: {self.note}"]
        lines = []
        for place, item in enumerate(self.items):
            if item.kind == "evaluate":
                continue
            judged = takewhile(lambda later: later.kind == "evaluate", self.items[place + 1 :])
            after = " and judged again" if item.kept and not all(one.kept for one in judged) else ""
            lines.append(f"{item.name}: {item.words}{after}{_for_about(item)}")
        seconds = self.seconds_from(self.items[0].name)
        if all(item.kept for item in self.items):
            lines.append("nothing is left to run")
        elif seconds is None:
            lines.append("how long it takes is not known before something of each kind has run here")
        else:
            lines.append(f"about {duration(seconds)} in all, going by the last run on this machine")
        return [*lines, f"not looked for: {self.note}"] if self.note else lines

    @property
    def trainings(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.kind == "train")

    def seconds_from(self, name: str) -> float | None:
        """About how long it takes from the start of a stage to the end; None where a training or evaluation has no known time."""
        names = [item.name for item in self.items]
        ahead = [item for item in self.items[names.index(name) :] if not item.kept]
        if any(item.seconds is None for item in ahead if item.kind in ("train", "evaluate")):
            return None
        return sum(item.seconds or 0.0 for item in ahead)


def _for_about(item: Item) -> str:
    return f", about {duration(item.seconds)}" if item.seconds and not item.kept else ""


def duration(seconds: float) -> str:
    """Seconds as people say them: ``40 s``, ``5 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forecast(config: PipelineConfig) -> Forecast:
    """Look at what stands, for this configuration and its inputs as they are now."""
    walk = _Walk(config, times.known())
    try:
        walk.pipeline()
    except storage.StorageError as error:  # a plan is made before there is a bucket, too
        return Forecast((), str(error))
    return Forecast(tuple(walk.items), walk.note)


class _Walk:
    """Goes down the pipeline; below what is not there yet, nothing can be looked for, because its name is not known yet."""

    def __init__(self, config: PipelineConfig, took: Mapping[str, Took]) -> None:
        self.config, self.took = config, took
        self.items: list[Item] = []
        self.models: dict[str, ModelRef | None] = {}
        self.note = ""

    def pipeline(self) -> None:
        config, evaluation = self.config, self.config.evaluation
        dataset = self._dataset("prepare", config.data)
        base = self._source(dataset)
        results = [self._judged(base, base, dataset, evaluation, "source")]
        self.models["source"] = latest = base
        for stage in config.pbm.stages:
            parent = self._named(stage.parent, "parent", dataset) if stage.parent else latest
            name = pbm_stage(*stage.sizes)
            own = self._dataset(f"prepare for {name}", stage.data) if stage.data else dataset
            how = (config.pbm.method, stage.sizes, stage.train)
            spec = pbm_spec(*how, own, parent, stage.draw) if own and parent else None
            checkpoint = self._trained(name, spec, stage.train.steps)
            for size in stage.sizes:
                self.models[pbm_stage(size)] = latest = self._model(checkpoint, config.pbm.clean_attention, size)
                results.append(self._judged(latest, base, dataset, evaluation, pbm_stage(size)))
        swd = config.swd
        distilled_on = self._dataset("prepare for swd", swd.data) if swd.data and swd.students else dataset
        for reference in swd.students:
            student, teacher = self._named(reference, "student", dataset), self._named(swd.teacher, "teacher", dataset)
            ready = distilled_on and student and teacher
            spec = swd_spec(swd, config.pbm.clean_attention, distilled_on, student, teacher) if ready else None  # type: ignore[arg-type]
            name = f"swd-b{student.block_size if student else block_size_of(reference) or '?'}"
            distilled = self._model(self._trained(name, spec, swd.train.steps), config.pbm.clean_attention)
            results.append(self._judged(distilled, base, dataset, evaluation, name))
        self._report(dataset, results)

    def _dataset(self, name: str, data: DataConfig) -> DatasetRef | None:
        at = self.config.storage_config
        manifest = None
        try:
            looks = [self._looks(suite) for suite in data.suites]
            if None not in looks:
                seen = [ref for ref in looks if ref is not None]
                uri = places.dataset_uri(at, data, raw_inputs(data), seen)
                manifest = _standing(uri)
        except InputError as error:
            self.note = str(error)
        self._add(name, "prepare", 0 if manifest else 1)
        return DatasetRef(uri=uri, manifest_sha256=manifest.digest, **manifest.metadata) if manifest else None

    def _looks(self, suite: str) -> LooksRef | None:
        uri = places.looks_uri(self.config.storage_config, suite, looks_key(suite))
        manifest = _standing(uri)
        return LooksRef(uri=uri, manifest_sha256=manifest.digest, suite=suite) if manifest else None

    def _source(self, dataset: DatasetRef | None) -> ModelRef | None:
        source = self.config.source
        if source.train is not None:
            spec = source_spec(source, dataset) if dataset else None
            return self._model(self._trained("source", spec, source.train.steps), "causal")
        return self._named(source.model, "source", dataset)

    def _named(self, reference: str, role: str, dataset: DatasetRef | None) -> ModelRef | None:
        """A stage's model, or one brought in from its place; looked for once."""
        if reference in self.models:
            return self.models[reference]
        ref = None
        try:
            if dataset:
                found = found_model(reference, self.config.tracking)
                ref = found.ref
                uri = places.resolved_uri(self.config.storage_config, role, found.contents, dataset)
                if ref is None and _standing(uri):
                    ref = written_model(uri)
        except (InputError, TrackingError) as error:
            self.note = str(error)
        self._add("source" if role == "source" else reference, "source", 0 if ref else 1)
        self.models[reference] = ref = in_role(ref, role) if ref else None
        return ref

    def _trained(self, name: str, spec: StageSpec | None, steps: int) -> CheckpointRef | None:
        """The last checkpoint of a finished training. ``steps``: as configured, where the spec is not known yet."""
        if spec is None:
            self._add(name, "train", max(1, steps), max(1, steps))
            return None
        steps = spec.train.steps
        run = run_of(spec, self.config.compute.checkpoints)
        there = [step for step in retention.steps(run.uri) if step <= steps and _standing(run.checkpoint(step))]
        reached = max(there, default=0)
        self._add(name, "train", steps - reached, steps)
        if reached < steps:
            return None
        base = spec.parent.uri if spec.parent else storage.join(run.uri, "base")
        return final_ref(spec, base, run.checkpoint(steps))

    def _model(self, checkpoint: CheckpointRef | None, clean_attention: str, block_size: int | None = None) -> ModelRef | None:
        """The model that a checkpoint has become."""
        if checkpoint is None:
            return None
        checkpoint = checkpoint.of_size(block_size)
        uri = places.model_uri(self.config.storage_config, checkpoint, clean_attention)
        manifest = _standing(uri)
        return checkpoint.model(uri, manifest.digest) if manifest else None

    def _judged(
        self, model: ModelRef | None, source: ModelRef | None, dataset: DatasetRef | None, evaluation: EvaluationConfig, name: str
    ) -> Ref | None:
        found = self._result(model, source, dataset, evaluation) if model and source and dataset else None
        self._add(f"evaluate {name}", "evaluate", 0 if found else 1)
        return found

    def _result(self, model: ModelRef, source: ModelRef, dataset: DatasetRef, evaluation: EvaluationConfig) -> Ref | None:
        at, judged = self.config.storage_config, list[Ref]()
        for benchmark in suite_of(evaluation).benchmarks:
            key = judged_key(model, dataset, benchmark, evaluation)
            manifest = _standing(uri := places.benchmark_uri(at, model, benchmark.name, key))
            if manifest is None or manifest.config_digest != key:
                return None
            judged.append(Ref(uri=uri, manifest_sha256=manifest.digest))
        manifest = _standing(uri := places.evaluation_uri(at, model, source, dataset, evaluation, judged))
        return Ref(uri=uri, manifest_sha256=manifest.digest) if manifest else None

    def _report(self, dataset: DatasetRef | None, results: Sequence[Ref | None]) -> None:
        there = [result for result in results if result]
        whole = dataset is not None and len(there) == len(results)
        config = self.config
        parts = {name: getattr(config, name) for name in ("data", "source", "pbm", "swd", "evaluation", "gate")}
        at = (config.storage_config, config.name, dataset, there, {"name": config.name, **shown(parts)})
        kept = whole and _standing(places.report_uri(*at))  # type: ignore[arg-type]
        self._add("report", "report", 0 if kept else 1)

    def _add(self, name: str, kind: Kind, todo: int, units: int = 1) -> None:
        self.items.append(Item(name, kind, todo, units, self._seconds(name, kind, todo)))

    def _seconds(self, name: str, kind: Kind, todo: int) -> float | None:
        """By the stage's own last run, else by the slowest of its kind."""
        if kind == "evaluate":
            return self._seconds_to_judge(name.removeprefix("evaluate "))
        alike = [took for what, took in self.took.items() if kind == "train" and took.units > 1]
        own = [self.took[name]] if name in self.took else alike
        return todo * max(took.each for took in own) if own else None

    def _seconds_to_judge(self, model: str) -> float | None:
        def total(name: str) -> float:
            mine = (f"evaluate {name}", f"judge {name} ")
            return sum(took.seconds for what, took in self.took.items() if what == mine[0] or what.startswith(mine[1]))

        known = [what.removeprefix("evaluate ") for what in self.took if what.startswith("evaluate ")]
        return max(map(total, [model] if model in known else known), default=None)


def _standing(uri: str) -> Manifest | None:
    """The manifest of an artifact whose files have their sizes."""
    try:
        return artifacts.verify(uri, hashes=False)
    except artifacts.ArtifactError:
        return None
