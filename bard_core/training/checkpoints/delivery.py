"""A run's final checkpoint as the model folder that everything else reads, committed with its curve and its provenance."""

import torch

from bard_core.diffusion.names import TrainedAttention, decoded
from bard_core.store import artifacts, provenance, storage, workshop
from bard_core.store.artifacts import Manifest
from bard_core.store.refs import CheckpointRef
from bard_core.training.checkpoints import dcp
from bard_core.training.checkpoints.consolidate import consolidate
from bard_core.training.curve import lasting


def deliver(checkpoint: CheckpointRef, clean_attention: TrainedAttention, uri: str) -> Manifest:
    """Write the checkpoint's Hugging Face folder to ``uri``, in the precision of its training, and make it an artifact.

    It records the checkpoint's block size, by which it will decode.

    Raises:
        ArtifactError: the checkpoint, or the model it was trained from, is missing or torn. ConsolidationError: see there.
    """
    with workshop.scratch("model") as scratch:
        staging = scratch / "model"
        consolidate(
            artifacts.fetch(checkpoint, part=dcp.MODEL_PART),
            staging,
            artifacts.fetch(checkpoint.base_uri),
            dtype=torch.bfloat16 if checkpoint.precision == "bfloat16" else None,
            bard={"block_size": checkpoint.block_size, "clean_attention": decoded(clean_attention)},
        )
        (staging / "training_curve.jsonl").write_bytes(lasting(storage.read_bytes(checkpoint.curve_uri)))
        provenance.add(staging, provenance.of_run(checkpoint.curve_uri))
        return artifacts.commit_directory(
            staging,
            uri,
            kind="model",
            step=checkpoint.step,
            config_digest=artifacts.read_manifest(checkpoint.uri).config_digest,
            parent_digest=checkpoint.parent_sha256,
        )
