"""consolidate: a training checkpoint to a model anyone can load."""

from typing import cast

from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.diffusion.names import TrainedAttention
from bard_core.store import artifacts, claims, places
from bard_core.tracking import log_model, stage_run
from bard_core.training.checkpoints.delivery import deliver
from tasks.settings import Checkpoint, Model, stage_task


@stage_task("prepare", "consolidate", code="consolidate")
def consolidate(
    checkpoint: Checkpoint,
    clean_attention: str,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    parent_run: str,
    block_size: int | None = None,
) -> Model:
    """Write a checkpoint's Hugging Face folder, in the precision of its training, unless it stands there; log it to MLflow.

    ``block_size``: that it is to decode by, for a checkpoint that was trained on several; None: the largest.
    """
    checkpoint = checkpoint.of_size(block_size)
    name = checkpoint.name
    uri = places.model_uri(storage_config, checkpoint, clean_attention)
    with (
        claims.exclusive(f"{uri}.claim"),  # of two pipelines at once, one writes the model and the other finds it
        stage_run(tracking, parent_run, "consolidate", f"consolidate {name}", {"step": checkpoint.step}) as run,
    ):
        manifest = artifacts.standing(uri) or deliver(checkpoint, cast(TrainedAttention, clean_attention), uri)
        ref = checkpoint.model(uri, manifest.digest)
        log_model(tracking, run.run_id, ref)
    return ref
