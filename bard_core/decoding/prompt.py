"""A batch of prompts as the Hugging Face processor returns it, made ready for block decoding.

Rows are padded on the left, so that every response starts at the same column; positions follow the model's multimodal rope
where it has one. The prompt is clean: prefix blocks count from each row's first token.

Shape suffixes: B rows, L prompt length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bard_core.diffusion.layout import CLEAN, NOISY, TokenTable, attention_mask, sample_layout
from bard_core.diffusion.names import CleanAttention
from bard_core.models import bard_settings
from bard_core.models.turns import turns_of_prompt

_PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
VISUAL = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


@dataclass(frozen=True)
class Prompt:
    """A batch, ready.

    Attributes:
        position_ids: [B, L], or [3, B, L] under multimodal rope. next_position_B: that of the first response token.
        lengths: real tokens of each row. turns: each row's assistant turns [start, end), where blocks start anew.
        images: what else the model's body takes.
    """

    input_ids_BL: Tensor
    real_BL: Tensor
    position_ids: Tensor
    next_position_B: Tensor
    lengths: tuple[int, ...]
    turns: tuple[tuple[tuple[int, int], ...], ...]
    images: dict[str, Any]

    @property
    def pads(self) -> list[int]:
        """Padding tokens at the left of each row."""
        return [self.input_ids_BL.shape[1] - length for length in self.lengths]

    def mask(self, block_size: int, clean_attention: CleanAttention, noisy: int = 0) -> Tensor:
        """Boolean [B, 1, L + noisy, L + noisy] among the prompt's tokens and a noisy block that rides along behind them.

        Padding sees padding, so that no softmax is empty.
        """
        real, (rows, width) = self.real_BL.long(), self.real_BL.shape
        ends = real.new_tensor(self.lengths)[:, None].expand(rows, noisy)
        riding = torch.arange(noisy, device=real.device).expand(rows, noisy)
        table = TokenTable(
            sample=torch.cat([real - 1, torch.zeros_like(riding)], 1),
            position=torch.cat([real.cumsum(1) - 1, ends + riding], 1),
            block=torch.cat([self._blocks(block_size), torch.full_like(riding, width)], 1),  # more than any block of the prompt
            role=torch.cat([torch.full_like(real, CLEAN), torch.full_like(riding, NOISY)], 1),
        )
        return attention_mask(table, table, clean_attention)[:, None]

    def _blocks(self, block_size: int) -> Tensor:
        """The block [B, L] of every prompt token."""
        blocks = torch.zeros(self.real_BL.shape, dtype=torch.long)
        for row, (length, turns) in enumerate(zip(self.lengths, self.turns, strict=True)):
            blocks[row, blocks.shape[1] - length :] = sample_layout(length, turns, block_size).clean_block_N
        return blocks.to(self.real_BL.device)


def read_prompt(model: Any, inputs: Mapping[str, Any]) -> Prompt:
    """Left-align the padding and find the positions.

    Args:
        inputs: input_ids [B, L]; optional attention_mask [B, L] (padding on either side), mm_token_type_ids [B, L],
            pixel_values, image_grid_thw and whatever else the model's body takes for images and video.

    Raises:
        ValueError: input_ids are missing, not [B, L], disagree with the attention mask's shape, are outside the vocabulary, or
            have image or video tokens whose pixels are missing; or the model's config lacks the markers of its turns.
    """
    weight = model.get_input_embeddings().weight
    batch = left_padded(model, inputs, weight.shape[0])
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    device = weight.device
    lengths = tuple(real.sum(1).tolist())
    images = {k: _to(v, device) for k, v in batch.items() if k not in _PER_TOKEN and v is not None}
    positions, following = _positions(model, ids, real, batch.get("mm_token_type_ids"), images)
    return Prompt(
        ids.to(device), real.to(device), positions.to(device), following.to(device), lengths, _turns(model, ids, lengths), images
    )


def _turns(model: Any, ids_BL: Tensor, lengths: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The assistant turns of every row; none where the model's blocks do not depend on them."""
    markers = bard_settings(model).turns
    if markers is None:
        return ((),) * len(lengths)
    rows = zip(ids_BL.tolist(), lengths, strict=True)
    return tuple(tuple(turns_of_prompt(row[len(row) - length :], markers)) for row, length in rows)


def left_padded(model: Any, inputs: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The same inputs with padding on the left, cut to the longest row, and an attention mask of zeros and ones in any case.

    ``tokens``: how many the model has.

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
    _check_tokens(model, batch, tokens)
    return batch


def _check_tokens(model: Any, batch: Mapping[str, Any], tokens: int) -> None:
    """Every token has an embedding, and every kind of visual token its pixels."""
    ids = batch["input_ids"]
    if ids.numel():
        least, most = map(int, ids.aminmax())
        if least < 0 or most >= tokens:
            raise ValueError(f"input_ids go from {least} to {most}, but the model has tokens 0 to {tokens - 1}")
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
    """Positions ([B, L] or [3, B, L]), and the next position [B] of every row: one past its last token's.

    A video's frames may stand at later positions than the text behind it; neither training nor ``generate`` looks at those.
    """
    plain = (real.long().cumsum(1) - 1).clamp_min(0)
    following = real.sum(1)
    grids = {name: images[name] for name in VISUAL if name in images}
    if not grids or not hasattr(model.base_model, "get_rope_index"):
        return plain, following
    types = token_types(model, ids) if types is None else types
    seen = real | ~real.any(1, keepdim=True)  # an empty row has no positions to find; its padding stands in
    positions, _ = model.base_model.get_rope_index(
        ids.cpu(),
        mm_token_type_ids=types.cpu(),
        attention_mask=seen.long().cpu(),
        **{name: _to(grid, torch.device("cpu")) for name, grid in grids.items()},
    )
    last = positions[..., -1].amax(0).to(following.device)
    return positions, torch.where(real.any(1), last + 1, following)


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
