"""source, for real profiles: a pretrained checkpoint from a folder, S3 or the hub, given its mask token."""

from bard_core.config.sections import SourceConfig, StorageConfig, TrackingConfig
from bard_core.data import inputs
from bard_core.data.inputs import Contents
from bard_core.models.convert import adopt
from bard_core.store import artifacts, places, workshop
from bard_core.store.refs import ModelRef
from bard_core.tracking import log_model, stage_run
from tasks.settings import Dataset, Model, stage_task


@stage_task("train", "control")
def source_inputs(source: SourceConfig) -> Contents:
    """What the source model is now. Not cached: new weights at an old path are what it is to notice."""
    return inputs.source_inputs(source)


@stage_task("train", "resolve", code="resolve")
def resolve_source(
    source: SourceConfig,
    found: Contents,
    dataset: Dataset,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    parent_run: str,
) -> Model:
    """Bring the source model in as it was ``found``, add the mask token, and log it."""
    uri = places.resolved_uri(storage_config, found, dataset)
    with stage_run(tracking, parent_run, "source", "source", {"model": source.model, "revision": found.commit}) as run:
        if (manifest := artifacts.standing(uri)) is None:
            with workshop.scratch("source") as scratch:
                staging = scratch / "model"
                adopt(source.model, found.commit, artifacts.fetch(dataset) / "processor", staging, dataset.system_prompt)
                origin = {"commit": found.commit, "content": found.digest}
                manifest = artifacts.commit_directory(staging, uri, kind="model", metadata=origin)
        ref = ModelRef(uri=uri, manifest_sha256=manifest.digest, stage="source", block_size=1, parent_sha256=None)
        log_model(tracking, run.run_id, ref)
    return ref
