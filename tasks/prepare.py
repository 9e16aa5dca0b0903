"""prepare: raw shards to a tokenised dataset."""

from bard_core.config.sections import DataConfig, StorageConfig, TrackingConfig
from bard_core.data.prepare import prepare as prepare_dataset
from bard_core.store import artifacts, storage
from bard_core.tracking import stage_run
from tasks.settings import Dataset, artifact_uri, stage_task


@stage_task("prepare", "prepare")
def prepare(data: DataConfig, storage_config: StorageConfig, tracking: TrackingConfig, parent_run: str) -> Dataset:
    """Prepare the dataset once for all later stages."""
    uri = artifact_uri(storage.root_uri(storage_config), "prepare", "dataset", artifacts.digest(data))
    with stage_run(tracking, parent_run, "prepare", "prepare", {"max_tokens": data.max_tokens}) as run:
        ref = prepare_dataset(data, uri)
        run.log_metrics({"num_train": ref.num_train, "num_eval": ref.num_eval})
    return ref
