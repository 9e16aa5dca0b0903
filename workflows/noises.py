"""One block size under every noise: one source, one dataset, trained on each noise in turn, curves side by side.

    pyflyte run workflows/noises.py bard_noises --inputs-file configs/lab_noises.yaml

The data and source stages are those of ``workflows/pipeline.py``, found in the cache when their sections are the same.
"""

from flytekit import workflow

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.pbm import NoiseStudy
from bard_core.config.sections.source import SourceConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from tasks.consolidate import consolidate
from tasks.curves import curves
from tasks.pbm import pbm as merge_blocks
from tasks.ray_cluster import training
from tasks.resolve import find_model, resolve_model
from tasks.resources import pod
from tasks.settings import Dataset, Report, stage_dynamic
from tasks.source import train_source
from tasks.within import within
from workflows.prepare import prepare


@stage_dynamic("train")
def train_each(
    name: str,
    dataset: Dataset,
    source: SourceConfig,
    study: NoiseStudy,
    compute: ComputeConfig,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
) -> Report:
    """The source, then one training a noise, then their curves."""
    run = {"tracking": tracking, "parent_run": ""}
    place = {"storage_config": storage_config, **run}
    on_ray = training(compute)
    if source.train is not None:
        trained = within(on_ray, train_source)(source=source, dataset=dataset, compute=compute, **run)
        base = within(pod("consolidate", compute), consolidate)(checkpoint=trained, clean_attention="causal", **place)
    else:
        found = find_model(reference=source.model, tracking=tracking)
        named = {"found": found, "role": "source", "dataset": dataset, **place}
        base = within(pod("resolve", compute), resolve_model)(**named)
    checkpoints = [
        within(on_ray, merge_blocks)(
            method=study.method.model_copy(update={"noise": noise}),
            block_sizes=[study.block_size],
            draw="uniform",
            train=study.train,
            dataset=dataset,
            parent=base,
            compute=compute,
            **run,
        )
        for noise in study.noises
    ]
    return curves(name=name, labels=[noise.name for noise in study.noises], checkpoints=checkpoints, **place)


@workflow
def bard_noises(
    name: str,
    data: DataConfig,
    source: SourceConfig,
    study: NoiseStudy,
    compute: ComputeConfig = ComputeConfig(),
    storage_config: StorageConfig = StorageConfig(),
    tracking: TrackingConfig = TrackingConfig(),
) -> Report:
    """Returns the report: report.md and curves.png in its folder."""
    dataset = prepare(data=data, compute=compute, storage_config=storage_config, tracking=tracking, parent_run="")
    return train_each(
        name=name,
        dataset=dataset,
        source=source,
        study=study,
        compute=compute,
        storage_config=storage_config,
        tracking=tracking,
    )
