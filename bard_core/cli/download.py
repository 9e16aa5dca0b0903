"""download: data sets and base models, before anything is prepared or trained."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bard_core.cli.configuration import Json, read

if TYPE_CHECKING:
    from bard_core.config.file import PipelineConfig
    from bard_core.config.sections.data import DataConfig

WHAT = "a file of configs/, or hf://datasets/OWNER/NAME (or a folder below it), s3://BUCKET/PREFIX, a base model's OWNER/NAME"


def add_to(app: typer.Typer) -> None:
    app.command()(download)


def download(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help=WHAT, show_default=False)],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="folder or s3:// place of the copy", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="branch, tag or commit on the hub [default: main]", show_default=False)
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="only these files or folders, as names or patterns")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="not these")] = None,
    as_json: Json = False,
) -> None:
    """Bring data sets and base models here, or copy one to a folder or to S3. Stopped and started again, it goes on.

    A configuration's raw shards and model go to the caches that prepare and train read; HF_TOKEN opens gated repositories.

    Example: bard download configs/bard_4b.yaml

    Example: bard download hf://datasets/HuggingFaceM4/FineVision --revision main --include ai2d_merged -o raw/finevision

    Example: bard download Qwen/Qwen3-VL-4B-Instruct -o s3://bucket/models/qwen3-vl-4b
    """
    if what.endswith((".yaml", ".yml")):
        if output or revision or include or exclude:
            raise typer.BadParameter(
                "--output, --revision, --include and --exclude are for one data set or model; a configuration says its own"
            )
        settings = read(context, Path(what))
        bring_sources(_data_of(settings), as_json, _models_of(settings))
        return
    if context.obj:
        raise typer.BadParameter(f"--{context.obj[0][0]} sets a key of a configuration, and {what} is none")
    if output is None:
        raise typer.BadParameter("--output is missing: the folder or s3:// place of the copy")
    from bard_core.data.mirror import copy

    place = what if "://" in what or Path(what).expanduser().exists() else f"hf://{what}"
    done = copy(place, output, revision, tuple(include or ()), tuple(exclude or ()))
    said = f"{done.output}: {done.files} files, {done.bytes:,} bytes, {done.fetched} of them brought now" + (
        f"; commit {done.commit}" if done.commit else ""
    )
    print(json.dumps(asdict(done), indent=2) if as_json else said)


def _data_of(settings: "PipelineConfig") -> "list[DataConfig]":
    """What all stages share, and what some name for themselves."""
    own = [*(stage.data for stage in settings.pbm.stages), settings.swd.data]
    return [settings.data, *(data for data in own if data is not None)]


def _models_of(settings: "PipelineConfig") -> dict[str, str | None]:
    """Hub id -> revision of the models that a configuration names, and of the processor."""
    from bard_core.config.references import HUB, hub_id

    references = [settings.source.model, *(stage.parent or "" for stage in settings.pbm.stages)]
    if settings.swd.students:
        references += [settings.swd.teacher, *settings.swd.students]
    named = dict(hub_id(name) for name in references if HUB.fullmatch(name))
    if HUB.fullmatch(settings.data.processor) and not Path(settings.data.processor).expanduser().is_dir():
        named.setdefault(settings.data.processor, settings.data.processor_revision)
    return named


def bring_sources(configs: "Sequence[DataConfig]", as_json: bool, models: dict[str, str | None] | None = None) -> None:
    """Bring the raw shards of configurations, and models, into the caches that the stages read."""
    from bard_core.data.download import download as bring
    from bard_core.data.sources import Shard
    from bard_core.progress import Bar

    body: dict[str, Any] = {"sources": [], "models": {}}
    named = {(source.uri, source.revision, source.include, source.exclude): source for data in configs for source in data.sources}
    for source in named.values():
        facts: dict[str, Any] = {"name": source.name, "uri": source.uri, "commit": None, "shards": 0, "bytes": 0}
        with Bar(desc=source.name, unit="B", unit_scale=True) as bar:

            def on_shard(shard: Shard, bar: Any = bar, facts: dict[str, Any] = facts) -> None:
                facts |= {"commit": shard.revision, "shards": facts["shards"] + 1, "bytes": facts["bytes"] + shard.size}
                bar.set_postfix_str(f"{facts['shards']} shards", refresh=False)
                bar.update(shard.size)

            bring(source, on_shard)
        body["sources"].append(facts)
    for name, revision in (models or {}).items():
        from huggingface_hub import snapshot_download

        body["models"][name] = snapshot_download(name, revision=revision)
    lines = [f"{facts['name']}: {facts['shards']} shards, {facts['bytes']:,} bytes" for facts in body["sources"]]
    lines += [f"{name}: {folder}" for name, folder in body["models"].items()]
    print(json.dumps(body, indent=2) if as_json else "\n".join(lines or ["nothing to bring: all of it is made here"]))
