"""resolve: a model that a configuration names by its place, brought in as it was found; a source is given its mask token."""

from bard_core.config.sections import StorageConfig, TrackingConfig
from bard_core.data import inputs
from bard_core.data.inputs import FoundModel
from bard_core.models.convert import adopt, check_vocabulary
from bard_core.store import artifacts, workshop
from bard_core.store.refs import ModelRef
from bard_core.tracking import log_model, stage_run
from tasks.settings import Dataset, Model, artifact_uri, stage_task


@stage_task("train", "control")
def find_model(reference: str, tracking: TrackingConfig) -> FoundModel:
    """What the model is now. Not cached: new weights at an old path, or another champion, are what it is to notice."""
    return inputs.found_model(reference, tracking)


@stage_task("train", "resolve", code="resolve")
def resolve_model(
    found: FoundModel,
    role: str,
    dataset: Dataset,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    parent_run: str,
) -> Model:
    """Bring a model in as it was ``found``, add the mask token unless it has one, and log it.

    ``role``: source, whatever else it may be, is the autoregressive model that the others are measured against. What Bard wrote
    is used as it stands.
    """
    from transformers import AutoTokenizer

    contents = found.contents
    params = {"model": found.reference, "revision": contents.commit}
    processor = artifacts.fetch(dataset) / "processor"
    with stage_run(tracking, parent_run, "source", role, params) as run:
        ref = found.ref
        if ref is None:
            uri = artifact_uri(storage_config, "models", role, "resolve", contents, dataset.key)
            if (manifest := artifacts.standing(uri)) is None:
                with workshop.scratch("source") as scratch:
                    staging = scratch / "model"
                    adopt(found.place, contents.commit, processor, staging, dataset.system_prompt)
                    origin = {"commit": contents.commit, "content": contents.digest}
                    manifest = artifacts.commit_directory(staging, uri, kind="model", metadata=origin)
            ref = ModelRef(uri=uri, manifest_sha256=manifest.digest, stage="pbm", block_size=1, parent_sha256=None)
        tokenizer = AutoTokenizer.from_pretrained(processor)
        settings = check_vocabulary(artifacts.fetch(ref), tokenizer, found.reference)
        ref = ref.model_copy(update={"block_size": settings.block_size})
        if role == "source" or ref.block_size == 1:
            ref = ref.model_copy(update={"stage": "source", "block_size": 1})
        log_model(tracking, run.run_id, ref)
    return ref
