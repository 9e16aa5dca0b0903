"""Checkpoints of a run: torch DCP shards in ``step-000500/``, believed only once their manifest is there and verifies.

All ranks write their shards into a hidden folder; rank 0 then hashes it and commits it atomically, so a kill at any moment
leaves either a whole checkpoint or none. The run folder must be reachable by every rank (a local disk for one node, a shared
file system for several). Nothing is unpickled before its manifest has been verified.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from bard_core import artifacts
from bard_core.training.parallel import barrier, rank_and_world

log = logging.getLogger(__name__)
PREFIX = "model."  # the objective holds the stock model under this name; checkpoints keep the stock names


def _state(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(objective, optimizer, options=StateDictOptions(full_state_dict=False))
    return {"model": {name.removeprefix(PREFIX): value for name, value in model_state.items()}, "optimizer": optimizer_state}


def save(
    run: Path, step: int, objective: nn.Module, optimizer: torch.optim.Optimizer, config_digest: str, parent_digest: str
) -> Path:
    """Write ``run/step-<step>`` from every rank and return it. A checkpoint already there is kept."""
    final, staging = run / f"step-{step:06d}", run / f".step-{step:06d}"
    rank, _ = rank_and_world()
    if rank == 0:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    barrier()
    dcp_save(_state(objective, optimizer), checkpoint_id=str(staging), no_dist=_alone())
    barrier()
    if rank == 0:
        artifacts.commit_directory(
            staging, str(final), kind="checkpoint", step=step, config_digest=config_digest, parent_digest=parent_digest
        )
    barrier()
    return final


def latest_complete(run: Path, config_digest: str, parent_digest: str) -> Path | None:
    """The newest checkpoint that is whole and belongs to this configuration and parent; says why others are skipped."""
    for folder in sorted(run.glob("step-*"), reverse=True):
        try:
            manifest = artifacts.verify(str(folder))
        except artifacts.ArtifactError as error:
            log.warning("skipping checkpoint %s: %s", folder, error)
            continue
        if (manifest.config_digest, manifest.parent_digest) != (config_digest, parent_digest):
            log.warning("skipping checkpoint %s: it was written by another configuration or from another model", folder)
            continue
        return folder
    return None


def restore(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a verified checkpoint into the sharded objective and its optimizer; returns the steps it has done.

    Raises:
        ArtifactError: the folder is torn or was changed.
    """
    manifest = artifacts.verify(str(folder))
    state = _state(objective, optimizer)
    dcp_load(state, checkpoint_id=str(folder), no_dist=_alone())
    set_state_dict(
        objective,
        optimizer,
        model_state_dict={PREFIX + name: value for name, value in state["model"].items()},
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=False, strict=True),
    )
    return int(manifest.step or 0)


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what a kill left half-written."""
    for folder in sorted(run.glob("step-*"))[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in run.glob(".step-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _alone() -> bool:
    return rank_and_world()[1] == 1 and not torch.distributed.is_initialized()
