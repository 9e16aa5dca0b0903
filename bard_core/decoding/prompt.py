"""A batch of prompts as the Hugging Face processor returns it, made ready for block decoding.

Rows are padded on the left, so that every response starts at the same column; positions follow the model's multimodal rope
where it has one. The prompt is clean: prefix blocks count from each row's first token.

Shape suffixes: B rows, L prompt length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bard_core.diffusion.layout import CLEAN, TokenTable, attention_mask
from bard_core.diffusion.names import CleanAttention
from bard_core.models.vlm import embedding_rows

_PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
VISUAL = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


@dataclass(frozen=True)
class Prompt:
    """``position_ids`` is [B, L], or [3, B, L] under multimodal rope; ``next_position_B`` that of the first response token."""

    input_ids_BL: Tensor
    real_BL: Tensor
    position_ids: Tensor
    next_position_B: Tensor
    lengths: tuple[int, ...]
    images: dict[str, Any]

    @property
    def pads(self) -> list[int]:
        """Padding tokens at the left of each row."""
        return [self.input_ids_BL.shape[1] - length for length in self.lengths]

    def mask(self, block_size: int, clean_attention: CleanAttention) -> Tensor:
        """Boolean [B, 1, L, L] among the prompt's tokens; padding sees padding, so that no softmax is empty."""
        position = self.real_BL.long().cumsum(1) - 1
        table = TokenTable(
            sample=self.real_BL.long() - 1,
            position=position,
            block=torch.div(position, block_size, rounding_mode="floor"),
            role=torch.full_like(position, CLEAN),
        )
        return attention_mask(table, table, clean_attention)[:, None]


def read_prompt(model: Any, inputs: Mapping[str, Any]) -> Prompt:
    """Left-align the padding and find the positions.

    Args:
        inputs: input_ids [B, L]; optional attention_mask [B, L] (padding on either side), mm_token_type_ids [B, L],
            pixel_values, image_grid_thw and whatever else the model's body takes for images and video.

    Raises:
        ValueError: input_ids are missing, not [B, L], disagree with the attention mask's shape, are outside the vocabulary, or
            have image or video tokens whose pixels are missing.
    """
    batch = left_padded(model, inputs)
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    device = model.get_input_embeddings().weight.device
    lengths = real.sum(1)
    images = {k: _to(v, device) for k, v in batch.items() if k not in _PER_TOKEN and v is not None}
    positions, following = _positions(model, ids, real, batch.get("mm_token_type_ids"), images)
    return Prompt(ids.to(device), real.to(device), positions.to(device), following.to(device), tuple(lengths.tolist()), images)


def left_padded(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs with padding on the left, cut to the longest row, and an attention mask of zeros and ones in any case.

    Raises:
        ValueError: as ``read_prompt``.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[0] == 0 or ids.dtype not in (torch.int32, torch.int64):
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"inputs['input_ids'] must be a tensor of ids [rows, length] with at least one row, got {got}")
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        got = str(list(mask.shape)) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask is {got} but input_ids is {list(ids.shape)}: pass the processor's output as is")
    mask = mask.bool().long()
    batch = {k: v for k, v in inputs.items() if v is not None} | {"attention_mask": mask}
    if not bool(mask.all()):
        order = mask.argsort(dim=1, stable=True)
        longest = int(mask.sum(1).max())
        for name in _PER_TOKEN:
            if name in batch:
                batch[name] = batch[name].gather(1, order)[:, ids.shape[1] - longest :]
    _check_tokens(model, batch)
    return batch


def _check_tokens(model: Any, batch: Mapping[str, Any]) -> None:
    """Every token has an embedding, and every kind of visual token its pixels."""
    ids, rows = batch["input_ids"], embedding_rows(model)
    if bool(((ids < 0) | (ids >= rows)).any()):
        raise ValueError(f"input_ids go from {int(ids.min())} to {int(ids.max())}, but the model has tokens 0 to {rows - 1}")
    for token, pixels in (("image_token_id", "pixel_values"), ("video_token_id", "pixel_values_videos")):
        token_id = getattr(model.config, token, None)
        if token_id is not None and pixels not in batch and bool((ids == token_id).any()):
            raise ValueError(
                f"input_ids have tokens {token_id} ({token}) but there is no {pixels!r}: pass all the processor returns"
            )


def token_types(model: Any, ids: Tensor) -> Tensor:
    """0 for text, 1 for image, 2 for video tokens: what the processor returns as ``mm_token_type_ids``."""
    return (ids == model.config.image_token_id).int() + 2 * (ids == getattr(model.config, "video_token_id", -1)).int()


def _positions(model: Any, ids: Tensor, real: Tensor, types: Tensor | None, images: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Positions ([B, L] or [3, B, L]) and the next position [B] of every row."""
    plain = (real.long().cumsum(1) - 1).clamp_min(0)
    following = real.sum(1)
    grids = {name: images[name] for name in VISUAL if name in images}
    if not grids or not hasattr(model.base_model, "get_rope_index"):
        return plain, following
    types = token_types(model, ids) if types is None else types
    seen = real | ~real.any(1, keepdim=True)  # an empty row has no positions to find; its padding stands in
    positions, deltas = model.base_model.get_rope_index(
        ids.cpu(),
        mm_token_type_ids=types.cpu(),
        attention_mask=seen.long().cpu(),
        **{name: _to(grid, torch.device("cpu")) for name, grid in grids.items()},
    )
    deltas = deltas[:, 0].to(following.device)
    return positions, following + torch.where(real.any(1), deltas, torch.zeros_like(deltas))


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
