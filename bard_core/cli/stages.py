"""prepare, train, distill, consolidate: the pipeline's stages one by one, each the function that its Flyte task calls.

Here one process trains; started by torchrun, or as the pipeline on Ray, several do:

    torchrun --nproc-per-node 8 -m bard_core.cli.main train configs/bard_4b.yaml --block-size 4 --dataset ... --parent ...
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bard_core.cli import models
from bard_core.cli.configuration import Config, Json, read

if TYPE_CHECKING:
    from bard_core.training.spec import StageSpec

Dataset = Annotated[str, typer.Option(help="a prepared dataset's folder or s3:// place", show_default=False)]
Output = Annotated[Path, typer.Option(help="a new folder for the model", show_default=False)]


def add_to(app: typer.Typer) -> None:
    for verb in (prepare, train, distill, consolidate):
        app.command()(verb)


def prepare(
    context: typer.Context,
    config: Config,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="folder or s3:// place of the dataset", show_default=False)
    ] = None,
    download_only: Annotated[bool, typer.Option("--download-only", help="bring the raw shards here and stop")] = False,
    as_json: Json = False,
) -> None:
    """Turn raw shards into a tokenised dataset, as `data` says.

    Example: bard prepare configs/lab.yaml -o data/lab --data.lab.train_images 1000
    """
    settings = read(context, config)
    if download_only:
        from bard_core.cli.download import bring_sources

        bring_sources([settings.data], as_json)
        return
    if output is None:
        raise typer.BadParameter("--output is missing: where the dataset goes")
    from bard_core.data.prepare import prepare as prepare_dataset

    ref = prepare_dataset(settings.data, output)
    said = f"{ref.uri}: {ref.num_train} samples to train on, {ref.num_eval} to judge by"
    print(ref.model_dump_json(indent=2) if as_json else said)


def train(
    context: typer.Context,
    config: Config,
    dataset: Dataset,
    output: Output,
    block_size: Annotated[int, typer.Option(help="of pbm.stages, the model's; 1: the lab's source model", show_default=False)],
    parent: Annotated[str | None, typer.Option(help="the model to start from", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Train one stage of Progressive Block Merging and write its model. Stopped and started again, it goes on.

    Example: bard train configs/lab.yaml --block-size 4 --dataset data/lab --parent models/source --output models/pbm-b4
    """
    settings = read(context, config)
    from bard_core.training.spec import pbm_spec, source_spec

    data = models.dataset_ref(dataset)
    if block_size == 1:
        _train(source_spec(settings.source, data), settings.compute.checkpoints, output, as_json)
        return
    stages = {size: stage for stage in settings.pbm.stages for size in stage.sizes}
    if block_size not in stages:
        raise typer.BadParameter(f"--block-size {block_size}: pbm.stages of {config} has {', '.join(map(str, stages))}")
    if parent is None:
        raise typer.BadParameter("--parent is missing: the model that this stage starts from")
    stage = stages[block_size]
    spec = pbm_spec(settings.pbm.method, stage.sizes, stage.train, data, models.model_ref(parent), stage.draw)
    _train(spec, settings.compute.checkpoints, output, as_json, block_size)


def distill(
    context: typer.Context,
    config: Config,
    dataset: Dataset,
    student: Annotated[str, typer.Option(help="the large-block model to improve", show_default=False)],
    teacher: Annotated[str, typer.Option(help="the small-block model to learn from", show_default=False)],
    output: Output,
    as_json: Json = False,
) -> None:
    """Distil a large-block student from a frozen small-block teacher, as `swd` says, and write its model.

    Example: bard distill configs/lab.yaml --dataset data/lab --student pbm-b32 --teacher pbm-b4 --output models/swd-b32
    """
    settings = read(context, config)
    from bard_core.training.spec import swd_spec

    refs = models.model_ref(student), models.model_ref(teacher)
    spec = swd_spec(settings.swd, settings.pbm.clean_attention, models.dataset_ref(dataset), *refs)
    _train(spec, settings.compute.checkpoints, output, as_json)


def _train(spec: "StageSpec", checkpoints: Any, output: Path, as_json: bool, block_size: int | None = None) -> None:
    """Train a stage in this process (or torchrun's), then write its model and make it an artifact."""
    if output.exists():
        raise typer.BadParameter(f"--output {output} is there already; name a new folder")
    from bard_core.store import artifacts, provenance, workshop
    from bard_core.training.checkpoints.consolidate import consolidate as write_model
    from bard_core.training.ranks import from_rank_zero, rank_and_world
    from bard_core.training.spec import run_of
    from bard_core.training.stage import prepare_base, run_stage

    where = run_of(spec, checkpoints)
    with _process_group():
        rank, _ = rank_and_world()
        base = from_rank_zero(prepare_base(spec, where) if rank == 0 else "")
        with _bar(spec.name, spec.train.steps, shown=rank == 0) as on_record:
            final = run_stage(spec, base, where, on_record)
        if rank > 0:
            return
    with workshop.scratch("model") as scratch:
        staging = scratch / "model"
        settings = {"block_size": block_size or spec.block_size, "clean_attention": spec.clean_attention}
        write_model(artifacts.fetch(final), staging, artifacts.fetch(base), bard=settings)
        provenance.add(staging, provenance.entry_of(spec.name, spec.dataset))
        parent = spec.parent.key if spec.parent else None
        manifest = artifacts.commit_directory(staging, str(output), kind="model", step=spec.train.steps, parent_digest=parent)
    body = {"uri": str(output), "manifest_sha256": manifest.digest, "checkpoint": final}
    print(json.dumps(body, indent=2) if as_json else f"{output}: {spec.name} after {spec.train.steps} steps; checkpoint {final}")


@contextmanager
def _process_group() -> Iterator[None]:
    """torchrun's, where it started us."""
    import torch

    if "WORLD_SIZE" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _bar(name: str, steps: int, shown: bool) -> Iterator[Any]:
    from bard_core.progress import Bar

    with Bar(total=steps, desc=name, unit="step", disable=not shown) as bar:

        def on_record(record: dict[str, float]) -> None:
            bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
            bar.update(int(record["step"]) - bar.n)

        yield on_record


def consolidate(
    checkpoint: Annotated[
        str, typer.Option("--dcp-dir", help="a training checkpoint's folder or s3:// place", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output-dir", help="a new folder for the model", show_default=False)],
    source: Annotated[
        Path | None,
        typer.Option("--source-model-dir", help="the model that training started from: config, tokenizer", show_default=False),
    ] = None,
    max_shard_size_gb: Annotated[float, typer.Option(help="largest file")] = 5.0,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16, float32 [default: as trained]", show_default=False)
    ] = None,
    skip_copy: Annotated[bool, typer.Option("--skip-copy", help="leave the tokenizer's and processor's files out")] = False,
    block_size: Annotated[int | None, typer.Option(help="to record in config.json [default: the source model's]")] = None,
) -> None:
    """Write a stock Hugging Face folder from a sharded training checkpoint.

    Example: bard consolidate --dcp-dir run/step-00000700 --source-model-dir models/source --output-dir models/pbm-b4
    """
    if source is None:
        raise typer.BadParameter("--source-model-dir is missing: its config.json says which architecture the tensors are of")
    from bard_core.serving.chat import DTYPES
    from bard_core.training.checkpoints.consolidate import consolidate as write_model

    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # the released tool's
    kind = DTYPES.get(names.get(dtype, dtype)) if dtype else None
    if dtype and kind is None:
        raise typer.BadParameter(f"--dtype {dtype}: one of {', '.join([*DTYPES, *names])}")
    settings = None if block_size is None else {"block_size": block_size}
    write_model(checkpoint, output, source, int(max_shard_size_gb * 2**30), kind, settings)
    if skip_copy:
        from bard_core.training.checkpoints.consolidate import COMPANIONS

        kept = {"config.json", "model.safetensors.index.json"}
        for path in output.iterdir():
            if path.suffix in COMPANIONS and path.name not in kept:
                path.unlink()
    print(output)
