"""Images into Qwen3-VL without waiting for the device.

transformers reads grids off the device (``.tolist()``), and finds the image tokens there by boolean masks, whose sizes the host
has to wait for: in the tower's forward, at each deepstack level, and once more in the backward pass. The host knows all of it
before the batch is sent: grids, and where the image tokens stand. The numbers are those of the stock code.

Shape suffixes: B rows, L row length, T image tokens, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bard_core.models.vlm import vision_tower


def grid_inputs(model: Any, grid_thw: Tensor, device: torch.device) -> dict[str, Tensor]:
    """What the tower would compute of the grids [images, 3], as keyword arguments of ``get_image_features``.

    Grids of other towers, and of older releases of transformers, go to the device as they are.
    """
    tower: Any = vision_tower(model)
    try:
        from transformers.vision_utils import (
            get_vision_cu_seqlens,
            get_vision_interpolation_indices_and_weights,
            get_vision_position_ids,
        )
    except ImportError:
        return {"image_grid_thw": grid_thw.to(device)}
    if not _is_qwen3(model):
        return {"image_grid_thw": grid_thw.to(device)}
    merge = tower.config.spatial_merge_size
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid_thw,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=merge,
    )
    sent = {"interp_indices": indices, "interp_weights": weights, "position_ids": get_vision_position_ids(grid_thw, merge)}
    return {
        "image_grid_thw": grid_thw,
        "image_cu_seqlens": get_vision_cu_seqlens(grid_thw),  # attention cuts images apart by it, on the host
        **{f"image_{name}": value.to(device, non_blocking=True) for name, value in sent.items()},
    }


def takes_places(model: Any) -> bool:
    """Whether ``last_hidden_states`` knows how the model puts images in."""
    return _is_qwen3(model) and hasattr(model.get_decoder(), "_deepstack_process")


def last_hidden_states(
    model: Any,
    input_ids_BL: Tensor,
    position_ids: Tensor,
    mask: Any,
    merged_TD: Tensor,
    deepstack: Sequence[Tensor],
    image_at_T: Tensor,
) -> Tensor:
    """The stock decoder over embeddings with image features at the places ``image_at_T``, flat in [B x L], ascending."""
    decoder = model.get_decoder()
    embedded_BLD = model.get_input_embeddings()(input_ids_BL)
    flat = embedded_BLD.flatten(0, 1).index_copy(0, image_at_T, merged_TD.to(embedded_BLD.dtype))

    def add_level(hidden_BLD: Tensor, where: Tensor, level_TD: Tensor) -> Tensor:
        return hidden_BLD.flatten(0, 1).index_add(0, where, level_TD.to(hidden_BLD.dtype)).view_as(hidden_BLD)

    decoder._deepstack_process = add_level
    try:
        out = decoder(
            inputs_embeds=flat.view_as(embedded_BLD),
            attention_mask=mask,
            position_ids=position_ids,
            visual_pos_masks=image_at_T,
            deepstack_visual_embeds=list(deepstack),
            use_cache=False,
        )
    finally:
        del decoder._deepstack_process
    hidden_BLD: Tensor = out.last_hidden_state
    return hidden_BLD


def _is_qwen3(model: Any) -> bool:
    tower: nn.Module | None = vision_tower(model)
    return hasattr(tower, "deepstack_merger_list") and hasattr(tower, "interpolation_mode")
