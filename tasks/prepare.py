"""prepare: raw shards to a tokenised dataset."""

from bard_core.config.sections import DataConfig, StorageConfig, TrackingConfig
from bard_core.data import inputs
from bard_core.data.inputs import RawInputs
from bard_core.data.prepare import prepare as prepare_dataset
from bard_core.store import artifacts
from bard_core.store.refs import DatasetRef
from bard_core.tracking import stage_run
from tasks.settings import Dataset, artifact_uri, stage_task


@stage_task("prepare", "control")
def raw_inputs(data: DataConfig) -> RawInputs:
    """What the raw data is now. Not cached: changed data at an old path is what it is to notice."""
    return inputs.raw_inputs(data)


@stage_task("prepare", "prepare", code="prepare")
def prepare(
    data: DataConfig, raw: RawInputs, storage_config: StorageConfig, tracking: TrackingConfig, parent_run: str
) -> Dataset:
    """Prepare the dataset once for all later stages, unless it stands there."""
    uri = artifact_uri(storage_config, "prepare", "dataset", "prepare", data, raw)
    with stage_run(tracking, parent_run, "prepare", "prepare", {"max_tokens": data.max_tokens}) as run:
        if (manifest := artifacts.standing(uri)) is not None:
            counts = {name: manifest.metadata[name] for name in ("num_train", "num_eval")}
            ref = DatasetRef(uri=uri, manifest_sha256=manifest.digest, **counts)
        else:
            ref = prepare_dataset(inputs.pinned(data, raw), uri)
        run.log_metrics({"num_train": ref.num_train, "num_eval": ref.num_eval})
    return ref
