"""plan, check, schema: what a configuration says and costs."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from bard_core.config.file import Fault, PipelineConfig
    from bard_core.plan import Plan

READERS = {"check", "distill", "download", "evaluate", "plan", "prepare", "train"}  # verbs that take dotted options

Config = Annotated[Path, typer.Argument(help="a file of configs/", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="the same for machines")]


def add_to(app: typer.Typer) -> None:
    app.command()(plan)
    app.command()(check)
    app.command()(schema)


def read(context: typer.Context, path: Path) -> "PipelineConfig":
    """The checked configuration with the command line's dotted options put in."""
    from bard_core.config.faults import read_config

    return read_config(path, context.obj or (), (_names_lead_somewhere,))


def _names_lead_somewhere(config: "PipelineConfig") -> "Iterator[Fault]":
    from bard_core.evaluation.questions import QuestionError, read_questions
    from bard_core.evaluation.suites import SuiteError, load_suite, suite_of

    try:
        for benchmark in suite_of(config.evaluation).benchmarks:
            if benchmark.questions:
                read_questions(Path(benchmark.questions))
    except (SuiteError, QuestionError, OSError) as error:
        yield "evaluation.suite", str(error)
    name = config.data.processor
    found = name == "lab" or "://" in name or Path(name).expanduser().is_dir()
    if not found and (name.startswith(("/", ".", "~")) or name.count("/") != 1):
        yield "data.processor", f"{name!r} is neither lab, nor a folder that is there, nor s3://, nor a hub id (owner/name)"
    models = {"source.model": config.source.model, "swd.teacher": config.swd.teacher if config.swd.students else "source"}
    models |= {f"swd.students.{number}": student for number, student in enumerate(config.swd.students)}
    models |= {f"pbm.stages.{number}.parent": stage.parent or "" for number, stage in enumerate(config.pbm.stages)}
    for key, name in models.items():
        if name.startswith(("/", "~")) and not Path(name).expanduser().is_dir():
            yield key, f"{name!r} is a folder that is not there"
    stages = {f"pbm.stages.{number}.data": stage.data for number, stage in enumerate(config.pbm.stages)}
    for section, data in {"data": config.data, **stages, "swd.data": config.swd.data}.items():
        for number, suite in enumerate(data.suites if data else ()):
            try:
                load_suite(suite)
            except SuiteError as error:
                yield f"{section}.suites.{number}", str(error)
        for number, source in enumerate(data.sources if data else ()):
            if "://" not in source.uri and not _folder_of(source.uri).expanduser().exists():
                yield f"{section}.sources.{number}.uri", f"{source.uri!r}: no such folder on this machine"


def _folder_of(pattern: str) -> Path:
    """The folder, or file, that a pattern's fixed part names."""
    fixed = re.split(r"[*{?\[]", pattern)[0]
    return Path(fixed if fixed == pattern else fixed.rpartition("/")[0] or "/")


def plan(
    context: typer.Context,
    config: Config,
    gpu: Annotated[Literal["a100", "h100", "h200"], typer.Option(help="what to train on")] = "h100",
    mfu: Annotated[float, typer.Option(help="share of peak FLOP/s that is reached")] = 0.35,
    tokens_per_sample: Annotated[
        int | None, typer.Option(help="mean tokens, noisy copies included [default: a full row]", show_default=False)
    ] = None,
    image_tokens_per_sample: Annotated[int, typer.Option(help="how many of them are image")] = 1024,
    train_samples: Annotated[
        int | None, typer.Option(help="samples of the dataset, where a stage's length is in num_epochs", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="a prepared dataset, whose lengths and balance count", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """What will run, and for how long; what it costs on GPUs: memory, tokens, hours, sizes. Needs no GPU.
    Exits with 1 where a stage does not fit the GPUs.

    Example: bard plan configs/bard_4b.yaml --gpu h200 --pbm.stages.0.train.steps 1000
    """
    settings = read(context, config)
    from bard_core import plan as planning
    from bard_core.forecast import forecast
    from bard_core.store.artifacts import ArtifactError

    try:
        ahead = forecast(settings)
        assumptions = planning.Assumptions(gpu, mfu, tokens_per_sample, image_tokens_per_sample, train_samples, dataset)
        found = planning.plan(settings, assumptions)
    except (ValueError, ArtifactError) as error:
        print(f"bard plan: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    body = {**asdict(found), "fits": found.fits, "standing": asdict(ahead)}
    print(json.dumps(body, indent=2) if as_json else "\n".join([*ahead.lines, "", plan_text(found)]))
    if not found.fits:
        raise typer.Exit(1)


def check(
    context: typer.Context,
    config: Config,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the whole configuration, options put in")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a list of the faults, for machines")] = False,
) -> None:
    """Say all that is wrong with a configuration, or that nothing is. Starts nothing.

    Example: bard check configs/lab.yaml --swd.train.optimizer.lr 1e-3 -o mine.yaml
    """
    from bard_core.config.faults import ConfigFaultsError

    try:
        settings = read(context, config)
    except ConfigFaultsError as error:
        if not as_json:
            raise
        print(json.dumps([asdict(fault) for fault in error.faults], indent=2))
        raise typer.Exit(2) from error
    if output is None:
        print("[]" if as_json else f"{config}: fine")
        return
    import yaml

    body = settings.model_dump(mode="json", exclude_unset=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(yaml.safe_dump(body, sort_keys=False), encoding="utf-8")


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="the configuration reference of the docs")] = False,
) -> None:
    """Every key of a configuration file, as JSON Schema (for editors) or as a page.

    Example: bard schema > bard.schema.json
    """
    from bard_core.config.file import PipelineConfig
    from bard_core.config.reference import reference

    print(reference().rstrip() if markdown else json.dumps(PipelineConfig.model_json_schema(), indent=2))


def plan_text(plan: "Plan") -> str:
    """A plan for the terminal."""
    from bard_core.plan import GPU_MEMORY

    given, numbers = plan.assumptions, plan.parameters
    room = GPU_MEMORY[given.gpu]
    heavy = plan.heaviest
    need = sum(heavy.memory.values())
    names = ([stage.parent for stage in plan.stages], [stage.teacher for stage in plan.stages])
    wide = [max(9, *(len(name) + 2 for name in column)) for column in names]
    tokens = f"{given.tokens_per_sample:,} tokens a sample" if given.tokens_per_sample else "a full row a sample, an upper bound"
    if given.dataset:
        tokens = f"samples as in {given.dataset}"
    fits = "fits" if plan.fits else "does NOT fit (more GPUs, activation_checkpointing or compute.parallel.shard_over would help)"
    lines = [
        f"{plan.name}: {plan.model} on {plan.gpus} x {given.gpu}",
        f"parameters: {_count(numbers.total)} = decoder layers {_count(numbers.text_layers)}, vision {_count(numbers.vision)}, "
        f"embeddings {_count(numbers.embeddings)}; each GPU's shard of weights and AdamW is {_size(plan.shard)}",
        f"assumed: {tokens}; {given.image_tokens_per_sample:,} tokens of it image; {given.mfu:.0%} of peak FLOP/s",
        "",
        f"memory a GPU at the peak, in {heavy.name}: {_size(need)}, {fits} {_size(room)}",
        *(f"  {name:<18}{_size(size):>10}" for name, size in heavy.memory.items() if size),
        "",
        f"  {'stage':<9}{'from':<{wide[0]}}{'teacher':<{wide[1]}}{'steps':>8}{'tokens/step':>13}{'GPU-hours':>11}{'hours':>9}"
        f"{'checkpoint':>12}{'model':>10}",
    ]
    for stage in plan.stages:
        lines.append(
            f"  {stage.name:<9}{stage.parent:<{wide[0]}}{stage.teacher or '-':<{wide[1]}}{stage.steps:>8,}"
            f"{_count(stage.tokens_per_step):>13}"
            f"{stage.gpu_hours:>11,.0f}{stage.gpu_hours / plan.gpus:>9,.1f}{_size(stage.checkpoint):>12}{_size(stage.model):>10}"
        )
    lines.append(f"  {'all':<{30 + sum(wide)}}{plan.gpu_hours:>11,.0f}{plan.gpu_hours / plan.gpus:>9,.1f}")
    for stage in plan.stages:
        if (loads := stage.balance) is not None:
            lines.append(
                f"{stage.name}: {loads.tokens_per_sample:,} tokens a sample, {loads.useful:.1%} of all computed no padding, "
                f"ranks work {loads.in_step:.1%} of the time; largest micro-batch {loads.rows} x {loads.row_tokens:,}"
            )
    lines.append("every model is evaluated as soon as it exists, and a report closes the run")
    return "\n".join(lines)


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"


def _size(number: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"
