"""source, for real profiles: a pretrained checkpoint from a folder, S3 or the hub, given its mask token."""

from bard_core.config.sections import SourceConfig, StorageConfig, TrackingConfig
from bard_core.models.convert import adopt
from bard_core.store import artifacts, storage
from bard_core.store.refs import ModelRef
from bard_core.tracking import log_model, stage_run
from tasks.settings import Dataset, Model, artifact_uri, stage_task


@stage_task("train", "resolve")
def resolve_source(
    source: SourceConfig, dataset: Dataset, storage_config: StorageConfig, tracking: TrackingConfig, parent_run: str
) -> Model:
    """Bring the source model in, add the mask token, and log it."""
    key = artifacts.digest([source, dataset.key])
    uri = artifact_uri(storage.root_uri(storage_config), "models", "source", key)
    with (
        stage_run(tracking, parent_run, "source", "source", {"model": source.model, "revision": source.revision}) as run,
        storage.scratch("source") as scratch,
    ):
        staging = scratch / "model"
        adopt(source.model, source.revision, artifacts.fetch(dataset) / "processor", staging)
        manifest = artifacts.commit_directory(staging, uri, kind="model", config_digest=artifacts.digest(source))
        ref = ModelRef(uri=uri, manifest_sha256=manifest.digest, stage="source", block_size=1, parent_sha256=None)
        return ref.model_copy(update={"mlflow_model_id": log_model(tracking, run.run_id, ref)})
