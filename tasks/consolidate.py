"""consolidate: a training checkpoint to a model anyone can load."""

from bard_core.config.sections import StorageConfig, TrackingConfig
from bard_core.store import artifacts, claims, places, provenance, storage, workshop
from bard_core.tracking import log_model, stage_run
from bard_core.training.checkpoints import dcp
from bard_core.training.checkpoints.consolidate import consolidate as write_model
from bard_core.training.curve import lasting
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
    import torch

    checkpoint = checkpoint.of_size(block_size)
    name = checkpoint.name
    uri = places.model_uri(storage_config, checkpoint, clean_attention)
    with (
        claims.exclusive(f"{uri}.claim"),  # of two pipelines at once, one writes the model and the other finds it
        stage_run(tracking, parent_run, "consolidate", f"consolidate {name}", {"step": checkpoint.step}) as run,
    ):
        if (manifest := artifacts.standing(uri)) is None:
            with workshop.scratch("model") as scratch:
                staging = scratch / "model"
                write_model(
                    artifacts.fetch(checkpoint, part=dcp.MODEL_PART),
                    staging,
                    artifacts.fetch(checkpoint.base_uri),
                    dtype=torch.bfloat16 if checkpoint.precision == "bfloat16" else None,
                    bard={"block_size": checkpoint.block_size, "clean_attention": clean_attention},
                )
                (staging / "training_curve.jsonl").write_bytes(lasting(storage.read_bytes(checkpoint.curve_uri)))
                provenance.add(staging, provenance.of_run(checkpoint.curve_uri))
                manifest = artifacts.commit_directory(
                    staging,
                    uri,
                    kind="model",
                    step=checkpoint.step,
                    config_digest=artifacts.read_manifest(checkpoint.uri).config_digest,
                    parent_digest=checkpoint.parent_sha256,
                )
        ref = checkpoint.model(uri, manifest.digest)
        log_model(tracking, run.run_id, ref)
    return ref
