"""Suites: a YAML file each, naming benchmarks and every setting that changes a score. Nothing is left to a silent default.

A benchmark is a task of lmms-eval's, or one of ours: a folder of ``tasks/`` whose template is pointed at the prepared dataset.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.config.strict import StrictModel
from bard_core.evaluation.questions import content_digest, write_task_data
from bard_core.evaluation.scorers import Scorer
from bard_core.store import artifacts
from bard_core.store.refs import Ref

FOLDER = Path(__file__).parent


class SuiteError(Exception):
    """A suite or benchmark is unknown, malformed or lacks its data: says which and what there is."""


class Benchmark(StrictModel):
    """One lmms-eval task and all that its score depends on besides the model and its decoding."""

    name: str = Field(min_length=1, description="How reports and metrics call it")
    task: str = Field(min_length=1, description="lmms-eval's name of the task")
    own: bool = Field(False, description="A folder of suites/tasks fed from the prepared dataset, not a task of lmms-eval's")
    metrics: dict[str, float] = Field(
        min_length=1, description="lmms-eval metric -> its value at perfection; accuracy is their sum over the perfect sum"
    )
    prompt: str | None = Field(description="Key of the task's lmms_eval_specific_kwargs; null only where the task has one prompt")
    max_new_tokens: int | None = Field(None, ge=1, description="Longest answer; None: the decoding's own")
    min_pixels: int | None = Field(None, ge=256, description="Smallest image; None: as the processor says")
    max_pixels: int | None = Field(None, ge=256, description="Largest image; None: as the processor says")
    video_frames: int | None = Field(None, ge=2, description="Frames taken of a video; None: as the processor says")
    interleave_visuals: bool = Field(True, description="False: images and videos come before the text of their message")
    until: tuple[str, ...] = Field(
        (), description="Answers end before these; they replace the stop strings of the task's own file"
    )
    whole_blocks: bool = Field(False, description="max_new_tokens is rounded up to whole blocks, as the released decoder does")
    strip_full_stop: bool = Field(
        False, description="Spaces around an answer and one full stop at its end are left out before scoring"
    )
    max_samples: int | None = Field(None, ge=1, description="Judge at most this many samples; None: all")
    questions: str | None = Field(
        None, description="An own benchmark: JSONL of question, answers, images; see evaluation.questions"
    )
    scorer: Scorer = Field("exact", description="How answers to `questions` are scored")

    @model_validator(mode="before")
    @classmethod
    def _questions_need_no_more(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("questions") is not None:
            values = {"task": "bard_questions", "metrics": {"score": 1.0}, "prompt": None, **values}
        return values


class Suite(StrictModel):
    """Benchmarks judged together. ``version`` is raised by whoever changes what the suite means."""

    name: str
    description: str
    version: int = Field(ge=1)
    benchmarks: tuple[Benchmark, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> "Suite":
        names = [benchmark.name for benchmark in self.benchmarks]
        if len(set(names)) != len(names):
            raise ValueError(f"benchmark names must differ, got {names}")
        return self


def available() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_suite(name: str) -> Suite:
    """A suite of this folder by its name, or any suite by the path of its YAML file.

    Raises:
        SuiteError: there is none, or it is malformed.
    """
    path = FOLDER / f"{name}.yaml" if name in available() else Path(name)
    if path.suffix != ".yaml" or not path.is_file():
        raise SuiteError(f"no suite {name!r}; there are: {', '.join(available())}, or the path of a YAML file")
    body = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        for benchmark in body.get("benchmarks", []):
            if benchmark.get("questions"):
                benchmark["questions"] = str((path.parent / benchmark["questions"]).resolve())
        included = [benchmark for other in body.pop("include", []) for benchmark in load_suite(other).benchmarks]
        return Suite.model_validate({**body, "name": path.stem, "benchmarks": [*included, *body.get("benchmarks", [])]})
    except ValidationError as error:
        words = [f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors()]
        raise SuiteError(f"{path} is not a suite: {'; '.join(words)}") from error
    except (AttributeError, TypeError) as error:
        raise SuiteError(f"{path} is not a suite: it must be a mapping with description, version and benchmarks") from error


def suite_of(config: EvaluationConfig) -> Suite:
    """The configured suite with the configuration's own cap on samples, which is part of its digest."""
    suite = load_suite(config.suite)
    if config.max_samples is None:
        return suite
    capped = [b.model_copy(update={"max_samples": min(config.max_samples, b.max_samples or 2**62)}) for b in suite.benchmarks]
    return suite.model_copy(update={"benchmarks": tuple(capped)})


def _own_folder(benchmark: Benchmark) -> Path:
    folder = FOLDER / "tasks" / benchmark.task
    if not folder.is_dir():
        raise SuiteError(f"benchmark {benchmark.name!r}: no folder suites/tasks/{benchmark.task} with its task")
    return folder


def benchmark_digest(benchmark: Benchmark, dataset_digest: str) -> str:
    """Covers the settings, our task's files and data, and lmms-eval's version, which is that of its tasks."""
    ours = benchmark.own or benchmark.questions is not None
    files = sorted(path for path in _own_folder(benchmark).iterdir() if path.is_file()) if ours else []
    asked = {"questions": content_digest(Path(benchmark.questions))} if benchmark.questions else {}
    settings = benchmark.model_dump(exclude={"questions"} if asked else {"questions", "scorer"})
    return artifacts.digest(
        {
            "benchmark": settings,
            **asked,
            "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
            "dataset": dataset_digest if benchmark.own else None,
            "lmms_eval": version("lmms_eval"),
        }
    )


def suite_digest(suite: Suite, dataset_digest: str) -> str:
    """Scores under one digest may be compared."""
    parts: Sequence[str] = [benchmark_digest(benchmark, dataset_digest) for benchmark in suite.benchmarks]
    return artifacts.digest({"suite": suite.name, "version": suite.version, "benchmarks": parts})


def prepare_task(benchmark: Benchmark, dataset: Ref | str, workshop: Path) -> Path | None:
    """The folder to show lmms-eval: our task with the held-out samples of ``dataset``; None for a task of lmms-eval's own.

    They, and the data library's cache, stay in ``workshop``.

    Raises:
        SuiteError: there is no such task, or the dataset has no evaluation split.
    """
    if not benchmark.own and benchmark.questions is None:
        return None
    from bard_core.data.heldout import write_held_out  # brings torch, which checking a configuration can do without

    source = _own_folder(benchmark)
    folder = workshop / "tasks"
    folder.mkdir(parents=True)
    if benchmark.questions is not None:
        samples = workshop / "questions.jsonl"
        write_task_data(Path(benchmark.questions), benchmark.scorer, samples)
    elif not write_held_out(dataset, samples := workshop / "held_out.parquet"):
        raise SuiteError(f"{dataset} holds out no sample: prepare it with an evaluation split (data.eval_fraction)")
    for helper in source.glob("*.py"):
        shutil.copyfile(helper, folder / helper.name)
    files, cache = json.dumps([str(samples)]), json.dumps(str(workshop / "cache"))
    for template in source.glob("*.yaml.in"):
        text = template.read_text(encoding="utf-8")  # a JSON list or string is YAML too
        text = text.replace("{data_files}", files).replace("{cache_dir}", cache)
        (folder / template.name.removesuffix(".in")).write_text(text, encoding="utf-8")
    return folder
