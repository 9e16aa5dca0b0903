"""Run the stock model's body over a training layout, under either evaluation of the one mask rule."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bard_core.config import CleanAttention
from bard_core.diffusion.layout import TokenTable, attention_mask
from bard_core.models.vlm import backbone, vision_tower


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision tower yields for a list of images: merged tokens [T, D], and deepstack features, each [T, D]."""

    merged_TD: Tensor
    deepstack: tuple[Tensor, ...]
    lengths: tuple[int, ...]

    def to(self, device: torch.device | str) -> "ImageFeatures":
        return ImageFeatures(self.merged_TD.to(device), tuple(d.to(device) for d in self.deepstack), self.lengths)


@dataclass(frozen=True)
class Patches:
    """Images before the tower: patches [n, patch] and grids [images, 3]."""

    values: Tensor
    grid_thw: Tensor


def dense_mask(table_BL: TokenTable, clean_attention: CleanAttention) -> Tensor:
    """Boolean [B, 1, L, L] for SDPA. Padding sees itself, so that no row of the softmax is empty."""
    mask = attention_mask(table_BL, table_BL, clean_attention)
    mask.diagonal(dim1=-2, dim2=-1).fill_(True)
    return mask[:, None]


def encode_images(model: Any, pixel_values: Tensor, grid_thw: Tensor) -> ImageFeatures:
    """Run the vision tower over the patches [n, patch] of several images with grids [images, 3]."""
    if vision_tower(model) is None:
        raise ValueError(f"{type(model).__name__} has no vision tower, but the samples have images")
    out = backbone(model).get_image_features(pixel_values, grid_thw, return_dict=True)
    deepstack = getattr(out, "deepstack_features", None) or ()
    lengths = tuple(int(piece.shape[0]) for piece in out.pooler_output)
    return ImageFeatures(torch.cat(tuple(out.pooler_output)), tuple(torch.cat(tuple(level)) for level in deepstack), lengths)


def hidden_states(
    model: Any,
    input_ids_BL: Tensor,
    position_ids_CBL: Tensor,
    mask_B1LL: Tensor,
    images: ImageFeatures | Patches | None = None,
) -> Tensor:
    """Hidden states [B, L, D] of a training layout: stock body, explicit mask, features put in by the stock code."""
    inputs: dict[str, Any] = {}
    if isinstance(images, Patches):
        images = encode_images(model, images.values, images.grid_thw)
    if images is not None:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        encoded: Any = BaseModelOutputWithPooling()
        encoded.pooler_output = (images.merged_TD,)
        encoded.deepstack_features = [(level,) for level in images.deepstack]
        inputs["mm_encoder_outputs"] = {"image": encoded}
    positions = position_ids_CBL if position_ids_CBL.shape[0] > 1 else position_ids_CBL[0]
    out = backbone(model)(input_ids=input_ids_BL, attention_mask=mask_B1LL, position_ids=positions, use_cache=False, **inputs)
    return out.last_hidden_state
