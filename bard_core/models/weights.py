"""Weights that come late: a model's shapes first, then, where each tensor or shard of it will live, its safetensors.

A model's ranks so hold no more of it on the host than the pieces that are their own, and the file that they are read from is
mapped, not loaded. Buffers that no file holds (rotary frequencies) are computed where they live, by transformers' own code.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BASE = ".base_layer."  # stands in the name of a weight beside which there are adapters (``models.adapters``)


def stored_by_name(model: Any, folder: Path) -> bool:
    """Whether the folder's safetensors hold every tensor of the model's state under its own name and shape, tied ones once.

    It is so in all that Bard writes of Qwen3-VL. Families that transformers renames while it loads them may be stored otherwise,
    and a tied head that was stored may differ from its embedding; only transformers' own loading knows what to do then.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    shapes = {name: getattr(entry, "size", None) for name, entry in stored.items()}
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}
    return shapes == wanted


def fill(model: Any, folder: Path, device: torch.device, within: nn.Module | None = None) -> None:
    """Give a model on the meta device its weights, in place: those of each rank are read, and no others.

    Args:
        model: sharded or not, of the folder's architecture; see ``stored_by_name``.
        within: the module that holds the model and is sharded; None: the model itself.

    Adapters are not in the folder: they have room, and are to be initialised.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    (within or model).to_empty(device=device)
    model.tie_weights()
    _compute_buffers(model)
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    stored = {name: tensor for name, tensor in model.state_dict().items() if name not in tied and ".lora_" not in name}
    state: dict[str, Tensor] = {name.replace(BASE, "."): tensor for name, tensor in stored.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # what ``no_dist`` asks for
        dcp_load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def _compute_buffers(model: Any) -> None:
    """Those that are not part of the state. transformers leaves alone what is marked as there already."""
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    model.initialize_weights()
