"""The whole pipeline: raw data and an autoregressive VLM in, scored block-diffusion checkpoints and a report out.

    pyflyte run workflows/pipeline.py bard_pipeline --inputs-file configs/lab.yaml

Every argument is a section of the YAML file. A stage runs again only when a section it reads, or an artifact it starts from,
has changed.
"""

from flytekit import workflow

from bard_core.config.references import pbm_stage
from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.evaluation import EvaluationConfig, GateConfig
from bard_core.config.sections.pbm import PBMConfig
from bard_core.config.sections.source import SourceConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.config.sections.swd import SWDConfig
from tasks.consolidate import consolidate
from tasks.failure import report_failure
from tasks.pbm import pbm as merge_blocks
from tasks.ray_cluster import training
from tasks.report import report
from tasks.resolve import find_model, resolve_model
from tasks.resources import pod
from tasks.runs import close_run, open_run
from tasks.settings import Dataset, Evaluation, Model, stage_dynamic
from tasks.source import train_source
from tasks.swd import swd as distil
from tasks.within import within
from workflows.evaluate import evaluate
from workflows.prepare import prepare


@stage_dynamic("train")
def convert(
    dataset: Dataset,
    source: SourceConfig,
    pbm: PBMConfig,
    swd: SWDConfig,
    evaluation: EvaluationConfig,
    compute: ComputeConfig,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    parent_run: str,
) -> list[Evaluation]:
    """Source, then PBM stage by stage, then SWD students; every model is judged as soon as it exists.

    What a stage starts from, and the teacher, is another stage or is brought in from its place.
    """
    run = {"tracking": tracking, "parent_run": parent_run}
    place = {"storage_config": storage_config, **run}
    on_ray, small = training(compute), pod("consolidate", compute)
    judge = {"dataset": dataset, "evaluation": evaluation, "compute": compute, **place}
    models: dict[str, Model] = {}

    def named(reference: str, role: str) -> Model:
        if reference not in models:
            found = find_model(reference=reference, tracking=tracking)
            inside = pod("resolve", compute)
            models[reference] = within(inside, resolve_model)(found=found, role=role, dataset=dataset, **place)
        return models[reference]

    if source.train is not None:
        trained = within(on_ray, train_source)(source=source, dataset=dataset, compute=compute, **run)
        base = within(small, consolidate)(checkpoint=trained, clean_attention="causal", **place)
    else:
        base = named(source.model, "source")
    results = [evaluate(model=base, source=base, **judge)]
    models["source"] = latest = base
    for stage in pbm.stages:
        own = prepare(data=stage.data, compute=compute, **place) if stage.data else dataset
        checkpoint = within(on_ray, merge_blocks)(
            method=pbm.method,
            block_sizes=list(stage.sizes),
            draw=stage.draw,
            train=stage.train,
            dataset=own,
            parent=named(stage.parent, "parent") if stage.parent else latest,
            compute=compute,
            **run,
        )
        for size in stage.sizes:
            latest = within(small, consolidate)(
                checkpoint=checkpoint, clean_attention=pbm.clean_attention, block_size=size, **place
            )
            models[pbm_stage(size)] = latest
            results.append(evaluate(model=latest, source=base, **judge))
    distilled_on = prepare(data=swd.data, compute=compute, **place) if swd.data and swd.students else dataset
    for student in swd.students:
        checkpoint = within(on_ray, distil)(
            config=swd.method,
            clean_attention=pbm.clean_attention,
            dataset=distilled_on,
            student=named(student, "student"),
            teacher=named(swd.teacher, "teacher"),
            compute=compute,
            **run,
        )
        distilled = within(small, consolidate)(checkpoint=checkpoint, clean_attention=pbm.clean_attention, **place)
        results.append(evaluate(model=distilled, source=base, **judge))
    return results


@workflow(on_failure=report_failure)
def bard_pipeline(
    name: str,
    data: DataConfig,
    source: SourceConfig,
    pbm: PBMConfig,
    swd: SWDConfig,
    evaluation: EvaluationConfig,
    gate: GateConfig = GateConfig(),
    compute: ComputeConfig = ComputeConfig(),
    storage_config: StorageConfig = StorageConfig(),
    tracking: TrackingConfig = TrackingConfig(),
) -> str:
    """Returns the report's uri (report.md)."""
    parent_run = open_run(
        name=name,
        data=data,
        source=source,
        pbm=pbm,
        swd=swd,
        evaluation=evaluation,
        gate=gate,
        compute=compute,
        storage_config=storage_config,
        tracking=tracking,
    )
    dataset = prepare(data=data, compute=compute, storage_config=storage_config, tracking=tracking, parent_run=parent_run)
    results = convert(
        dataset=dataset,
        source=source,
        pbm=pbm,
        swd=swd,
        evaluation=evaluation,
        compute=compute,
        storage_config=storage_config,
        tracking=tracking,
        parent_run=parent_run,
    )
    finished = report(
        name=name,
        results=results,
        dataset=dataset,
        data=data,
        source=source,
        pbm=pbm,
        swd=swd,
        evaluation=evaluation,
        gate=gate,
        storage_config=storage_config,
        tracking=tracking,
        parent_run=parent_run,
    )
    return close_run(
        report=finished,
        results=results,
        dataset=dataset,
        evaluation=evaluation,
        gate=gate,
        tracking=tracking,
        storage_config=storage_config,
        parent_run=parent_run,
    )
