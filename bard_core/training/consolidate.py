"""Sharded checkpoint in, stock Hugging Face folder out: tensor by tensor, never the whole model in memory.

Output shards are filled one at a time from the DCP shards; a tied head is left out; the order of tensors is the checkpoint's
sorted names, so the same checkpoint gives the same bytes. ``from_pretrained`` loads the result with no code of ours.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bard_core import artifacts

NOT_COPIED = {artifacts.MANIFEST, "model.safetensors.index.json", "training_curve.jsonl", "README.md"}


class ConsolidationError(Exception):
    """The checkpoint does not make the model: says which tensor and why."""


def consolidate(
    checkpoint_dir: Path,
    output_dir: Path,
    source_model_dir: Path,
    max_shard_bytes: int = 5 * 2**30,
    dtype: torch.dtype | None = None,
    bard: dict[str, Any] | None = None,
) -> Path:
    """Write ``output_dir`` (new) from a committed checkpoint and the folder it was trained from.

    Args:
        source_model_dir: gives config, generation defaults, tokenizer and processor.
        max_shard_bytes: largest output shard, and about the peak memory.
        dtype: of the floating-point tensors; None: as trained.
        bard: settings to record in ``config.json``, over those of the source folder.

    Raises:
        ArtifactError: the checkpoint is torn or was changed (checked before anything is read from it).
        ConsolidationError: it holds no model.
    """
    from safetensors.torch import save_file

    artifacts.verify(str(checkpoint_dir))
    output_dir.mkdir(parents=True, exist_ok=False)
    _copy_companions(source_model_dir, output_dir, bard, dtype)
    tied = json.loads((output_dir / "config.json").read_text()).get("tie_word_embeddings", False)
    groups = list(_groups(_tensor_sizes(checkpoint_dir, tied, dtype), max_shard_bytes))
    weight_map, total = {}, 0
    for number, names in enumerate(groups, start=1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = _read(checkpoint_dir, names, dtype)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        save_file(tensors, output_dir / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (output_dir / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return output_dir


def _copy_companions(source: Path, output: Path, bard: dict[str, Any] | None, dtype: torch.dtype | None) -> None:
    """Everything of the source folder that is not weights, and the config with the new settings."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in NOT_COPIED and path.suffix != ".safetensors":
            shutil.copyfile(path, output / path.name)
    config = json.loads((output / "config.json").read_text())
    if bard is not None:
        config["bard"] = {**config.get("bard", {}), **bard}
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _metadata(checkpoint: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint import FileSystemReader

    found = FileSystemReader(str(checkpoint)).read_metadata().state_dict_metadata
    return {name.removeprefix("model."): meta for name, meta in found.items() if name.startswith("model.")}


def _tensor_sizes(checkpoint: Path, tied: bool, dtype: torch.dtype | None) -> list[tuple[str, int]]:
    """(name, bytes in the output) of every tensor to write, sorted by name."""
    sizes = []
    for name, meta in sorted(_metadata(checkpoint).items()):
        if tied and name == "lm_head.weight":
            continue
        kind = _output_dtype(meta.properties.dtype, dtype)
        sizes.append((name, meta.size.numel() * kind.itemsize))
    if not sizes:
        raise ConsolidationError(f"{checkpoint} holds no tensor under 'model.': is it a training checkpoint of Bard?")
    return sizes


def _output_dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and stored.is_floating_point else stored


def _groups(sizes: list[tuple[str, int]], limit: int) -> Iterator[list[str]]:
    """Consecutive names whose bytes stay within the limit (a larger tensor stands alone)."""
    names: list[str] = []
    used = 0
    for name, size in sizes:
        if names and used + size > limit:
            yield names
            names, used = [], 0
        names.append(name)
        used += size
    yield names


def _read(checkpoint: Path, names: list[str], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Load just these tensors from the DCP shards."""
    import torch.distributed.checkpoint as dcp

    meta = _metadata(checkpoint)
    state = {"model": {name: torch.empty(meta[name].size, dtype=meta[name].properties.dtype) for name in names}}
    dcp.load(state, checkpoint_id=str(checkpoint), no_dist=True)
    return {name: tensor.to(_output_dtype(tensor.dtype, dtype)) for name, tensor in state["model"].items()}
