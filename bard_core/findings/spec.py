"""A claim, one file of configs/findings: what is asked, which variants of a configuration answer it, and by which rule.

A variant is a whole pipeline configuration: a file of configs/ with dotted keys put in, as on the command line.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from bard_core.config.bases import CONFIGS
from bard_core.config.faults import ConfigFaultsError, read_config
from bard_core.config.file import PipelineConfig
from bard_core.config.references import pbm_stage
from bard_core.config.strict import Name, StrictModel

FOLDER = CONFIGS / "findings"
Metric = Literal["accuracy", "tokens_per_forward", "speedup"]
Equal = Literal["steps", "flops", "forwards", "nothing"]
SOURCE = "source"
SELF_SPECULATION = "self_speculative"


class ClaimError(ValueError):
    """A claim's file cannot be used: says what, where and how to fix it."""


class Side(StrictModel):
    """One side of a comparison: a variant's model at one point of decoding."""

    variant: str
    model: str = Field(description="As in the demo's table: pbm-b32, swd-b32, source")
    threshold: float | Literal["self_speculative"] = Field(0.9, description="Confidence threshold, or self_speculative")


class Comparison(StrictModel):
    """A candidate against a baseline of the same seed, by the difference of a metric (a share for accuracy)."""

    question: str = Field(min_length=1)
    candidate: Side
    baseline: Side
    metric: Metric = "accuracy"
    equal: Equal = Field(
        "steps",
        description="What both spent: optimizer steps, training FLOPs (within 5 %), forwards of decoding, or none of these",
    )
    decides: bool = Field(True, description="Whether the claim's verdict rests on it; False: it is told besides")
    margin: float = Field(0.0, description="The difference must exceed it; below 0: how much may be lost")


class Borrowed(StrictModel):
    """A model that another variant of the claim trains."""

    variant: str
    model: str


class Claim(StrictModel):
    """What is asked, and how it is answered."""

    name: Name
    number: int = Field(ge=1)
    question: str = Field(min_length=1)
    configuration: Name = Field("lab", description="A file of configs/")
    settings: dict[str, Any] = Field({}, description="Dotted keys of that file, the same for all variants")
    variants: dict[Name, dict[str, Any]] = Field(min_length=1, description="Name -> dotted keys over those")
    parents: dict[Name, Borrowed] = Field({}, description="Variant -> what its first stage starts from, in place of the source")
    teachers: dict[Name, Borrowed] = Field({}, description="Variant -> whom it distils from, in place of its own swd.teacher")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    thresholds: tuple[float, ...] = Field((0.7, 0.9, 0.98), min_length=1)
    held_out: Literal["evaluation", "validation"] = Field(
        "validation", description="Judged on; evaluation images are for the final table alone"
    )
    models: tuple[str, ...] = Field((), description="Which models are judged beside the source; none: all that a variant trains")
    comparisons: tuple[Comparison, ...] = ()
    rule: Literal["all", "any"] = Field(
        "all", description="Confirmed when all comparisons are, or any (each then held to a stricter level, Bonferroni's)"
    )
    notes: str = Field("", description="What the page says of it besides")

    @model_validator(mode="after")
    def _comparable(self) -> "Claim":
        for key, borrowed in (("parents", self.parents), ("teachers", self.teachers)):
            for variant, model in borrowed.items():
                if lost := {variant, model.variant} - {*self.variants}:
                    raise ValueError(f"{key}: variant {sorted(lost)[0]!r} is none of {list(self.variants)}")
                if model.variant in {*self.parents, *self.teachers}:
                    raise ValueError(
                        f"{key}: {variant} borrows from {model.variant}, which borrows itself; give one that does not"
                    )
        for comparison in self.comparisons:
            for side in (comparison.candidate, comparison.baseline):
                if problem := self._lack(side):
                    raise ValueError(f"comparison {comparison.question!r}: {problem}")
            if comparison.equal == "forwards" and comparison.metric != "accuracy":
                raise ValueError(f"comparison {comparison.question!r}: at equal forwards accuracy is compared")
        return self

    def _lack(self, side: Side) -> str:
        if side.variant not in self.variants:
            return f"variant {side.variant!r} is none of {list(self.variants)}"
        if self.models and side.model not in (SOURCE, *self.models):
            return f"{side.model} is not among models {list(self.models)}"
        if side.threshold != SELF_SPECULATION and side.threshold not in self.thresholds:
            return f"threshold {side.threshold} is none of {self.thresholds}"
        return ""

    def pipeline(self, variant: str, seed: int) -> PipelineConfig:
        """The configuration of one variant, every training of it seeded by ``seed``.

        Raises:
            ClaimError: the variant's keys do not make a configuration.
        """
        options = {"name": f"{self.name}-{variant}", **self.settings, **self.variants[variant]}
        try:
            config = _read(self.configuration, tuple((key, _text(value)) for key, value in options.items()))
        except ConfigFaultsError as error:
            raise ClaimError(f"configs/findings/{self.name}.yaml: variant {variant}: {error}") from error
        if config.source.train is None or config.data.lab is None:
            raise ClaimError(f"configs/findings/{self.name}.yaml: {self.configuration} does not train a lab source, as claims do")
        return _seeded(config, seed)


@cache
def _read(configuration: str, options: tuple[tuple[str, str], ...]) -> PipelineConfig:
    return read_config(CONFIGS / f"{configuration}.yaml", options)


def _text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("...\n").strip()


def _seeded(config: PipelineConfig, seed: int) -> PipelineConfig:
    body = config.model_dump()
    trains = [body["source"]["train"], body["swd"]["train"], *(stage["train"] for stage in body["pbm"]["stages"])]
    for train in trains:
        train["seed"] = seed
    return PipelineConfig.model_validate(body)


def trained_models(config: PipelineConfig) -> list[str]:
    """Names of the models that a configuration ends in, without the source."""
    stages = [pbm_stage(size) for stage in config.pbm.stages for size in stage.sizes]
    return [*stages, *(student.replace("pbm", "swd", 1) for student in config.swd.students)]


def read_claim(path: Path) -> Claim:
    """Raises ClaimError: the file cannot be read, is no YAML, or is no claim."""
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
        claim = Claim.model_validate({"name": path.stem, **body})
    except (OSError, yaml.YAMLError, TypeError, ValidationError) as error:
        raise ClaimError(f"{path}: {error}") from error
    for variant in claim.variants:
        made = trained_models(claim.pipeline(variant, claim.seeds[0]))
        named: list[Side | Borrowed] = [*claim.parents.values(), *claim.teachers.values()]
        named += [side for comparison in claim.comparisons for side in (comparison.candidate, comparison.baseline)]
        wanted = [one.model for one in named if one.variant == variant]
        if lost := sorted({*wanted} - {SOURCE, *made}):
            raise ClaimError(f"{path}: variant {variant} trains {', '.join(made)}, not {lost[0]}")
    return claim


def read_claims(names: Sequence[str] = (), folder: Path = FOLDER) -> list[Claim]:
    """The claims of these names, in order of their numbers; none: all there are.

    Raises:
        ClaimError: a name is unknown, or a file cannot be used.
    """
    there = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if unknown := [name for name in names if name not in there]:
        raise ClaimError(f"no claim {unknown[0]!r} in {folder}; there are {', '.join(there) or 'none'}")
    claims = [read_claim(path) for name, path in there.items() if not names or name in names]
    return sorted(claims, key=lambda claim: (claim.number, claim.name))
