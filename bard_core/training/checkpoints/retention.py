"""Which checkpoints a run's folder has, and which of them stay."""

import re

from bard_core.config.sections.compute import CheckpointConfig
from bard_core.store import artifacts, storage
from bard_core.store.artifacts import Manifest

KEPT = ".kept"
NAME = re.compile(r"step-(\d{6,})")


def checkpoint_uri(run_uri: str, step: int) -> str:
    return storage.join(run_uri, f"step-{step:06d}")


def steps(run_uri: str) -> list[int]:
    """Steps that have a checkpoint, whole or not, ascending."""
    return sorted(int(match[1]) for name in storage.list_folders(run_uri) if (match := NAME.fullmatch(name)))


def keep(uri: str, why: str) -> None:
    """Register a checkpoint: ``prune`` never deletes it."""
    storage.write_bytes(uri + KEPT, f"{why}\n".encode())


def prune(run_uri: str, settings: CheckpointConfig, newest: int) -> None:
    """Delete checkpoints up to step ``newest`` that are neither among the newest, nor among the best, nor registered.

    One without a manifest is none of these. Those past ``newest``, the checkpoint just written, could not be resumed from, so
    they do not count; they are written anew when training gets there.
    """
    there = [step for step in steps(run_uri) if step <= newest]
    if len(there) <= settings.keep_last:
        return
    whole = {step: manifest for step in there if (manifest := _manifest(checkpoint_uri(run_uri, step)))}
    looked = [step for step in whole if whole[step].metadata.get("val_loss") is not None]
    best = sorted(looked or whole, key=lambda step: _loss(whole[step], "val_loss" if looked else "loss"))[: settings.keep_best]
    for step in there:
        uri = checkpoint_uri(run_uri, step)
        if step not in [*list(whole)[-settings.keep_last :], *best] and not storage.exists(uri + KEPT):
            storage.delete_tree(uri, first=artifacts.MANIFEST)


def _manifest(uri: str) -> Manifest | None:
    try:
        return artifacts.read_manifest(uri)
    except artifacts.ArtifactError:
        return None


def _loss(manifest: Manifest, name: str) -> float:
    loss = manifest.metadata.get(name)
    return float("inf") if loss is None else float(loss)
