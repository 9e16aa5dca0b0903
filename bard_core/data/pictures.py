"""Images to what a vision tower takes, in two halves: decoding and resizing, for loader processes, and scaling, for the device.

Between them patches are bytes, a quarter of what would travel otherwise.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bard_core.data.images import open_image


def decode(image_processor: Any, images: Sequence[bytes], grid_thw: Sequence[Sequence[int]]) -> Tensor:
    """Patches (uint8) [n, patch] of encoded images, one after the other, as the processor resizes and cuts them.

    Raises:
        ValueError: the grids are not those that the dataset was prepared with.
    """
    pictures = [open_image(image) for image in images]
    out = image_processor(images=pictures, return_tensors="pt", do_rescale=False, do_normalize=False)
    if out["image_grid_thw"].tolist() != [list(grid) for grid in grid_thw]:
        raise ValueError(
            f"image grids {out['image_grid_thw'].tolist()} differ from the prepared {list(grid_thw)}: "
            "the processor's pixel limits changed since the dataset was prepared; prepare it again"
        )
    return out["pixel_values"].to(torch.uint8)


def scale(image_processor: Any, patches: Tensor) -> Tensor:
    """Patches in float32, scaled and normalised as the processor would have."""
    mean, std = (torch.tensor(value, device=patches.device) for value in (image_processor.image_mean, image_processor.image_std))
    brightest = 1.0 / image_processor.rescale_factor
    channels = patches.view(len(patches), len(mean), -1).float()
    return ((channels - (mean * brightest)[:, None]) / (std * brightest)[:, None]).flatten(1)
