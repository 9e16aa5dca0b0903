"""Images to what a vision tower takes, in two halves: decoding and resizing, for loader processes, and scaling, for the device.

Between them patches are bytes, a quarter of what would travel otherwise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bard_core.data.images import open_image
from bard_core.data.videos import frames_of, resized


def decode(image_processor: Any, images: Sequence[bytes], grid_thw: Sequence[Sequence[int]]) -> Tensor:
    """Patches (uint8) [n, patch] of encoded images, one after the other, as the processor resizes and cuts them.

    Raises:
        ValueError: the grids are not those that the dataset was prepared with.
    """
    frames = [frames_of(image) for image in images]
    plain = [i for i, data in enumerate(frames) if len(data) == 1]
    pieces: list[Tensor] = [torch.empty(0)] * len(images)
    if plain:
        pictures = [open_image(images[i]) for i in plain]
        out = image_processor(images=pictures, return_tensors="pt", do_rescale=False, do_normalize=False)
        grids = out["image_grid_thw"]
        if grids.tolist() != [list(grid_thw[i]) for i in plain]:
            raise ValueError(
                f"image grids {grids.tolist()} differ from the prepared {[list(grid_thw[i]) for i in plain]}: "
                "the processor's pixel limits changed since the dataset was prepared; prepare it again"
            )
        for i, patches in zip(plain, out["pixel_values"].to(torch.uint8).split(grids.prod(-1).tolist()), strict=True):
            pieces[i] = patches
    for i, moment in enumerate(frames):
        if len(moment) > 1:
            pieces[i] = _moment(image_processor, moment, grid_thw[i])
    return torch.cat(pieces)


def _moment(image_processor: Any, moment: Sequence[bytes], grid: Sequence[int]) -> Tensor:
    """Patches of a video's moment, cut as the video processor of Qwen3-VL does."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    patch = image_processor.patch_size
    pixels = [torch.from_numpy(np.asarray(open_image(frame)).copy()).permute(2, 0, 1) for frame in moment]
    frames_F3HW = torch.stack([resized(frame, grid[1] * patch, grid[2] * patch) for frame in pixels])
    cut: Any = Qwen3VLVideoProcessor.patchify
    patches, *_ = cut(None, frames_F3HW[None], patch, image_processor.merge_size, image_processor.temporal_patch_size)
    return patches[0]


def scale(image_processor: Any, patches: Tensor) -> Tensor:
    """Patches in float32, scaled and normalised as the processor would have."""
    mean, std = (torch.tensor(value, device=patches.device) for value in (image_processor.image_mean, image_processor.image_std))
    brightest = 1.0 / image_processor.rescale_factor
    channels = patches.view(len(patches), len(mean), -1).float()
    return ((channels - (mean * brightest)[:, None]) / (std * brightest)[:, None]).flatten(1)
