"""resolve: a model that a configuration names by its place, brought in as it was found; a source is given its mask token."""

from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.data import inputs
from bard_core.data.inputs import FoundModel
from bard_core.models.convert import adopt, check_vocabulary
from bard_core.store import artifacts, places, workshop
from bard_core.tracking import log_model, stage_run
from tasks.settings import Dataset, Model, stage_task


@stage_task("prepare", "control")
def find_model(reference: str, tracking: TrackingConfig) -> FoundModel:
    """What the model is now. Not cached: new weights at an old path, or another champion, are what it is to notice."""
    return inputs.found_model(reference, tracking)


@stage_task("prepare", "resolve", code="resolve")
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
            uri = places.resolved_uri(storage_config, role, contents, dataset)
            if artifacts.standing(uri) is None:
                with workshop.scratch("source") as scratch:
                    staging = scratch / "model"
                    adopt(found.place, contents.commit, processor, staging, dataset.system_prompt)
                    origin = {"commit": contents.commit, "content": contents.digest}
                    artifacts.commit_directory(staging, uri, kind="model", metadata=origin)
            ref = inputs.written_model(uri)
        ref = inputs.in_role(ref, role)
        check_vocabulary(artifacts.fetch(ref), AutoTokenizer.from_pretrained(processor), found.reference)
        log_model(tracking, run.run_id, ref)
    return ref
