"""One attention function for the text layers, and the stock model's body run over a training layout with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling

from bard_core.diffusion.layout import TokenTable, attention_mask
from bard_core.diffusion.names import TrainedAttention
from bard_core.diffusion.tiles import block_mask
from bard_core.models.block_attention import block_attention
from bard_core.models.unwaited import grid_inputs, last_hidden_states, takes_places
from bard_core.models.vlm import backbone, vision_tower

ATTENTION_NAME = "bard"


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision tower yields for a list of images: merged tokens [T, D], and deepstack features, each [T, D].

    ``as_tensors``: whether the model's own code hands (merged tokens, deepstack levels) on as one tensor, not as a tuple
    with an entry an image; it depends on the family and on the release of transformers.
    """

    merged_TD: Tensor
    deepstack: tuple[Tensor, ...]
    lengths: tuple[int, ...]
    as_tensors: tuple[bool, bool] = (False, False)

    def to(self, device: torch.device | str) -> "ImageFeatures":
        merged, *levels = (level.to(device, non_blocking=True) for level in (self.merged_TD, *self.deepstack))
        return replace(self, merged_TD=merged, deepstack=tuple(levels))


@dataclass(frozen=True)
class Patches:
    """Images before the tower: patches [n, patch] and, on the host, grids [images, 3]."""

    values: Tensor
    grid_thw: Tensor


def dense_mask(table_BL: TokenTable, clean_attention: TrainedAttention) -> Tensor:
    """Boolean [B, 1, L, L] for SDPA. Padding sees itself, so that no row of the softmax is empty."""
    mask = attention_mask(table_BL, table_BL, clean_attention)
    mask.diagonal(dim1=-2, dim2=-1).fill_(True)
    return mask[:, None]


def training_attention(table_BL: TokenTable, clean_attention: TrainedAttention) -> Tensor | BlockMask:
    """The mask in the form that trains on the table's device: sparse on CUDA, dense elsewhere (flex has no backward on CPU)."""
    if table_BL.role.is_cuda:
        return block_mask(table_BL, clean_attention)
    return dense_mask(table_BL, clean_attention)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    clean_queries: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of the text layers: a sparse mask goes to ``flex_attention``, all else to transformers' own SDPA.

    Args:
        query: [B, heads, L, D]; ``key`` and ``value``: [B, key-value heads, L, D].
        clean_queries: given by a block decoder, whose calls go to :func:`block_attention`.

    Returns:
        [B, L, heads, D] and None, as transformers expects.
    """
    if clean_queries is not None:
        return block_attention(query, key, value, attention_mask, options.get("scaling"), clean_queries)  # type: ignore[arg-type]
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    dtype = value.dtype  # under autocast a norm may have left query and key in fp32, which flex does not see to
    output = _compiled_flex()(
        query.to(dtype),
        key.to(dtype),
        value,
        block_mask=attention_mask,
        scale=options.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


@cache
def _compiled_flex() -> Any:
    """One compilation for rows of every length: the kernel takes lengths and tile lists as inputs."""
    return torch.compile(flex_attention, dynamic=True)


AttentionInterface.register(ATTENTION_NAME, attend)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def encode_images(model: Any, pixel_values: Tensor, grid_thw: Tensor | None = None) -> ImageFeatures:
    """Run the vision tower over several images.

    Args:
        pixel_values, grid_thw: patches [n, patch] and, on the host, grids [images, 3]; for towers that know no grids, the
            processor's pixel values alone.

    Raises:
        ValueError: the model has no vision tower.
    """
    if vision_tower(model) is None:
        raise ValueError(f"{type(model).__name__} has no vision tower, but the samples have images")
    grids = {} if grid_thw is None else grid_inputs(model, grid_thw, pixel_values.device)
    out = backbone(model).get_image_features(pixel_values, return_dict=True, **grids)
    deepstack = tuple(getattr(out, "deepstack_features", None) or ())
    as_tensors = (isinstance(out.pooler_output, Tensor), any(isinstance(level, Tensor) for level in deepstack))
    lengths = tuple(int(piece.flatten(0, -2).shape[0]) for piece in out.pooler_output)
    return ImageFeatures(_joined(out.pooler_output), tuple(_joined(level) for level in deepstack), lengths, as_tensors)


def _joined(pieces: Tensor | Sequence[Tensor]) -> Tensor:
    """[T, D] of one tensor [..., D] or of several."""
    return pieces.flatten(0, -2) if isinstance(pieces, Tensor) else torch.cat([piece.flatten(0, -2) for piece in pieces])


def hidden_states(
    model: Any,
    input_ids_BL: Tensor,
    position_ids_CBL: Tensor,
    mask: Tensor | BlockMask,
    images: ImageFeatures | Patches | None = None,
    image_at_T: Tensor | None = None,
) -> Tensor:
    """Hidden states [B, L, D] of a training layout: stock body, explicit mask, features put in by the stock code.

    Args:
        position_ids_CBL: C is 3 for multimodal rope, else 1. mask: boolean [B, 1, L, L], or its sparse form.
        image_at_T: places of the image tokens, flat in [B x L], ascending. Where they are known, the device need not be asked.
    """
    if isinstance(images, Patches):
        images = encode_images(model, images.values, images.grid_thw)
    positions = position_ids_CBL if position_ids_CBL.shape[0] > 1 else position_ids_CBL[0]
    use_our_attention(model)
    if images is not None and image_at_T is not None and takes_places(model):
        inputs = (images.merged_TD, images.deepstack, image_at_T)
        return last_hidden_states(model, input_ids_BL, positions, mask, *inputs)
    with _given_features(backbone(model), images) as pixels:
        out = backbone(model)(input_ids=input_ids_BL, attention_mask=mask, position_ids=positions, use_cache=False, **pixels)
    return out.last_hidden_state


def use_our_attention(model: Any) -> None:
    """Switch the text layers to :func:`attend`, and leave it so: they run again in a checkpointed backward, or in other threads.

    Given no mask of ours they work as transformers' SDPA.
    """
    config = model.get_decoder().config
    if config._attn_implementation != ATTENTION_NAME:
        config._attn_implementation = ATTENTION_NAME


@contextmanager
def _given_features(body: Any, images: ImageFeatures | None) -> Iterator[dict[str, Tensor]]:
    """Keyword arguments that make the stock body put these features in place: asked for those of its pixels, it gets them.

    Every image-text body of transformers takes ``pixel_values`` and asks its own ``get_image_features``; not every release
    takes features encoded before.
    """
    if images is None:
        yield {}
        return
    encoded: Any = BaseModelOutputWithPooling()
    merged_is_tensor, levels_are_tensors = images.as_tensors
    encoded.pooler_output = images.merged_TD[None] if merged_is_tensor else (images.merged_TD,)
    encoded.deepstack_features = [level if levels_are_tensors else (level,) for level in images.deepstack]
    body.get_image_features = lambda *_, **__: encoded
    try:
        yield {"pixel_values": images.merged_TD}
    finally:
        del body.get_image_features
