"""Sharded checkpoint in, stock Hugging Face folder out: one output shard in memory at a time, never the whole model.

Tensors are converted while they are read; a tied head is left out; the order of tensors is that of their sorted names, so the
same checkpoint gives the same bytes. The names are checked against the architecture of ``config.json`` built without memory
(meta device), so ``from_pretrained`` loads the result with no code of ours and nothing is left to random initialisation.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bard_core.models.adapters import adapters_of, is_adapter, merged
from bard_core.models.released import stock_config
from bard_core.models.turns import recorded_markers
from bard_core.models.vlm import empty_model
from bard_core.models.weights import BASE
from bard_core.store import artifacts, storage
from bard_core.store.artifacts import Manifest
from bard_core.training.checkpoints import dcp

log = logging.getLogger(__name__)
COMPANIONS = {".json", ".jinja", ".txt", ".model", ".spm"}  # config, generation defaults, tokenizer, processor


class ConsolidationError(Exception):
    """The checkpoint does not make the model: says which tensor and why."""


def consolidate(
    checkpoint_dir: Path | str,
    output_dir: Path,
    source_model_dir: Path,
    max_shard_bytes: int = 5 * 2**30,
    dtype: torch.dtype | None = None,
    bard: dict[str, Any] | None = None,
) -> Path:
    """Write ``output_dir`` (new) from a committed checkpoint and the folder it was trained from.

    Args:
        checkpoint_dir: a folder, or an s3:// uri that is brought here first, without its optimizer's files; its model tensors
            stand under the key ``model`` with the names of the stock ``state_dict()``.
        source_model_dir: gives config, generation defaults, tokenizer and processor.
        max_shard_bytes: largest output shard (a larger single tensor stands alone), and about the peak memory.
        dtype: of the floating-point tensors; None: as trained.
        bard: settings to record in ``config.json``, over those of the source folder. How a prompt's blocks were laid out, and the
            marks of its turns where the folder has a chat template, go with them: training lays out every turn anew.

    Raises:
        ArtifactError: the checkpoint is torn or was changed (checked before anything is read from it).
        ConsolidationError: it is not a checkpoint of this model. Nothing is left in ``output_dir``.
        FileExistsError: ``output_dir`` is there already.
    """
    if not storage.is_local(str(checkpoint_dir)):
        checkpoint_dir = artifacts.fetch(str(checkpoint_dir), part=dcp.MODEL_PART)
    checkpoint_dir = storage.local_path(str(checkpoint_dir))
    manifest = artifacts.verify(str(checkpoint_dir), part=dcp.MODEL_PART)
    if manifest.kind != "checkpoint":
        raise ConsolidationError(
            f"{checkpoint_dir} is a {manifest.kind}, not a training checkpoint; pass a step-* folder of a run"
        )
    output_dir.mkdir(parents=True, exist_ok=False)
    try:
        _write(checkpoint_dir, output_dir, source_model_dir, max_shard_bytes, dtype, bard, manifest)
    except BaseException:
        shutil.rmtree(output_dir, ignore_errors=True)
        raise
    return output_dir


def _write(
    checkpoint: Path, output: Path, source: Path, max_shard_bytes: int, dtype: torch.dtype | None, bard: dict[str, Any] | None,
    manifest: Manifest,
) -> None:  # fmt: skip
    from safetensors.torch import save_file

    for path in sorted(source.iterdir()):
        if path.suffix in COMPANIONS and path.name != artifacts.MANIFEST and not path.name.endswith(".index.json"):
            shutil.copyfile(path, output / path.name)
    stored = _stored_tensors(checkpoint)
    adapted = _adapted(checkpoint, manifest)
    wanted = {name: _output_dtype(meta.properties.dtype, dtype) for name, meta in stored.items()}
    config = _write_config(output, source.name, wanted, None if bard is None else {**recorded_markers(output), **bard})
    for name, kept in _ties(output, {name: tuple(meta.size) for name, meta in stored.items()}, checkpoint).items():
        if _equal(checkpoint, stored, name, kept):
            del wanted[name]
        else:  # training started from a folder whose head differs, which transformers loads untied: keep what was trained
            log.warning("%s: %s differs from %s, so the model is written untied", checkpoint, name, kept)
            _untie(output, config)
    groups = list(_groups([(name, stored[name].size.numel() * kind.itemsize) for name, kind in wanted.items()], max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = _read(checkpoint, {name: (stored[name].size, wanted[name]) for name in names}, adapted)
        save_file(tensors, output / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(groups) > 1:
        total = sum(stored[name].size.numel() * kind.itemsize for name, kind in wanted.items())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (output / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (output / "README.md").write_text(_model_card(config, manifest), encoding="utf-8")


def _output_dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and stored.is_floating_point else stored


def _stored_tensors(checkpoint: Path) -> dict[str, Any]:
    """Stock name -> DCP metadata (``.size``, ``.properties.dtype``) of the model's tensors, sorted; adapters left out."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    found = dcp.SafeReader(str(checkpoint)).read_metadata().state_dict_metadata
    own = {name.removeprefix("model."): meta for name, meta in found.items() if name.startswith("model.")}
    tensors = dict(sorted((name.replace(BASE, "."), meta) for name, meta in own.items() if not is_adapter(name)))
    if not tensors:
        raise ConsolidationError(f"{checkpoint} holds no tensor under 'model': save one with training.checkpoints.writer")
    if bad := [name for name, meta in tensors.items() if not isinstance(meta, TensorStorageMetadata)]:
        raise ConsolidationError(f"{checkpoint}: model.{bad[0]} is not a tensor; a model's state has tensors only")
    return tensors


def _write_config(output: Path, source: str, dtypes: dict[str, torch.dtype], bard: dict[str, Any] | None) -> dict[str, Any]:
    """Record the Bard settings and the dtype that the weights really have, in which ``from_pretrained`` will load them.

    ``source``: name of the folder the configuration comes from, which may be one of the paper's release.
    """
    path = output / "config.json"
    if not path.is_file():
        raise ConsolidationError(
            "source_model_dir has no config.json: it must be the Hugging Face folder the training started from"
        )
    config: dict[str, Any] = stock_config(json.loads(path.read_text(encoding="utf-8")), source)
    if bard is not None:
        config["bard"] = {**config.get("bard", {}), **bard}
    kinds = {kind for kind in dtypes.values() if kind.is_floating_point}
    if kinds:
        widest = max(kinds, key=lambda kind: kind.itemsize)
        for part in (config, *(value for value in config.values() if isinstance(value, dict) and "dtype" in value)):
            part["dtype"] = str(widest).removeprefix("torch.")
        config.pop("torch_dtype", None)
    _save_config(output, config)
    return config


def _ties(output: Path, shapes: dict[str, tuple[int, ...]], checkpoint: Path) -> dict[str, str]:
    """Stored name -> the stored name it is tied to, after a check that names and shapes are the architecture's.

    Raises:
        ConsolidationError: naming what is missing, unknown or of another shape.
    """
    from transformers import AutoConfig

    model = empty_model(AutoConfig.from_pretrained(output))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = getattr(model, "all_tied_weights_keys", {})
    problems = {
        "are missing": [name for name in expected if name not in shapes and name not in tied],
        "are unknown to the architecture": [name for name in shapes if name not in expected],
        "have another shape": [
            f"{name} {shapes[name]} instead of {shape}" for name, shape in expected.items() if shapes.get(name, shape) != shape
        ],
    }
    for problem, names in problems.items():
        if names:
            raise ConsolidationError(
                f"{checkpoint} is not a checkpoint of the model in source_model_dir: {len(names)} tensors {problem}, "
                f"first {names[0]}; pass the folder that this run was trained from"
            )
    return {name: kept for name, kept in tied.items() if name in shapes and kept in shapes}


def _equal(checkpoint: Path, stored: dict[str, Any], one: str, other: str) -> bool:
    """Whether two tensors are equal; those of a tied pair are so as they lie on disk, and need not be loaded."""
    if dcp.stored_alike(checkpoint, f"model.{one}", f"model.{other}"):
        return True
    pair = _read(checkpoint, {name: (stored[name].size, stored[name].properties.dtype) for name in (one, other)}, {})
    return torch.equal(pair[one], pair[other])


def _untie(output: Path, config: dict[str, Any]) -> None:
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = False
    _save_config(output, config)


def _save_config(output: Path, config: dict[str, Any]) -> None:
    (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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


def _adapted(checkpoint: Path, manifest: Manifest) -> dict[str, tuple[str, float]]:
    """Of weights with adapters: stock name -> the name that it is stored under, and what its adapter counts."""
    found = dcp.SafeReader(str(checkpoint)).read_metadata().state_dict_metadata
    scale = float(manifest.metadata.get("lora_scale", 0.0))
    return {
        name.removeprefix("model.").replace(BASE, "."): (name, scale)
        for name in found
        if name.startswith("model.") and BASE in name
    }


def _read(
    checkpoint: Path, wanted: dict[str, tuple[torch.Size, torch.dtype]], adapted: dict[str, tuple[str, float]]
) -> dict[str, Tensor]:
    """Load just these tensors, converted one by one, those with an adapter merged."""
    plain = {f"model.{name}": kind for name, (_, kind) in wanted.items() if name not in adapted}
    found = {name.removeprefix("model."): tensor for name, tensor in dcp.tensors(checkpoint, plain).items()}
    for name in wanted.keys() & adapted.keys():
        stored, scale = adapted[name]
        names = (stored, *(adapters_of(stored) if stored.endswith(".weight") else ()))
        parts = [dcp.tensors(checkpoint, {one: torch.float32})[one] for one in names]
        weight = merged(parts[0], parts[1], parts[2], scale) if len(parts) > 1 else parts[0]
        found[name] = weight.to(wanted[name][1])
    return {name: found[name] for name in wanted}


def _model_card(config: dict[str, Any], manifest: Manifest) -> str:
    """README.md: what this is, where it came from and how to load it. No dates and no places, so the same bytes each time."""
    settings = config.get("bard", {})
    block = int(settings.get("block_size", 1))
    kind = f"block-diffusion model, {block} tokens a block" if block > 1 else "autoregressive model, source of the conversion"
    seeing = "vision_config" in config
    auto = "AutoModelForImageTextToText" if seeing else "AutoModelForCausalLM"
    facts = {
        "architecture": ", ".join(config.get("architectures", [])) or config.get("model_type", ""),
        "block size": block,
        "mask token id": settings.get("mask_token_id"),
        "clean stream attention": settings.get("clean_attention"),
        "system prompt": json.dumps(prompt) if (prompt := settings.get("system_prompt")) is not None else None,
        "blocks of a prompt": settings.get("prefix_blocks"),
        "training step": manifest.step,
        "training configuration": manifest.config_digest,
        "parent model": manifest.parent_digest,
    }
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items() if value is not None)
    decode = (
        "Plain `generate` decodes token by token, which is not what a block-diffusion model is trained for. To fill whole\n"
        f"blocks: `bard_core.decoding.generate(model, inputs, block_size={block})`.\n"
    )
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {'image-text-to-text' if seeing else 'text-generation'}\n"
        f"tags:\n- bard\n- {'block-diffusion' if block > 1 else 'autoregressive'}\n---\n\n"
        f"# Bard: {kind}\n\n| | |\n|---|---|\n{rows}\n"
        f'```python\nfrom transformers import {auto}, AutoProcessor\n\nmodel = {auto}.from_pretrained("this folder")\n'
        f'processor = AutoProcessor.from_pretrained("this folder")\n```\n' + (f"\n{decode}" if block > 1 else "")
    )
