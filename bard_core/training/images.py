"""Images of a batch to what the objective takes: features from a frozen tower, which sees each image once, else patches."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bard_core.data.images import open_image
from bard_core.models.attention import ImageFeatures, Patches, encode_images

CACHE_BYTES = 2**30


class ImageEncoder:
    """Callable: (image bytes, grids) of a batch -> features or patches, or None for a batch without images.

    Args:
        frozen: the tower and its merger have no gradient, so features are kept, up to 1 GiB; else patches are kept.
    """

    def __init__(self, model: Any, image_processor: Any, frozen: bool, device: torch.device) -> None:
        self.model, self.image_processor, self.frozen, self.device = model, image_processor, frozen, device
        self._kept: dict[bytes, tuple[Tensor, ...]] = {}
        self._bytes = 0
        self._as_tensors = (False, False)

    def __call__(self, images: Sequence[bytes], grid_thw: Sequence[Sequence[int]]) -> ImageFeatures | Patches | None:
        if not images:
            return None
        grids = torch.tensor(grid_thw)
        keys = [hashlib.blake2b(image, digest_size=16).digest() for image in images]
        fresh = {key: i for i, key in enumerate(keys) if key not in self._kept}
        found = dict(self._kept)
        if fresh:
            found.update(zip(fresh, self._compute([images[i] for i in fresh.values()], grids[list(fresh.values())]), strict=True))
            self._keep({key: found[key] for key in fresh})
        parts = [found[key] for key in keys]
        if self.frozen:
            merged, *deepstack = (torch.cat(level) for level in zip(*parts, strict=True))
            lengths = tuple(part[0].shape[0] for part in parts)
            return ImageFeatures(merged, tuple(deepstack), lengths, self._as_tensors).to(self.device)
        return Patches(torch.cat([part[0] for part in parts]).to(self.device), grids.to(self.device))

    def _compute(self, images: Sequence[bytes], grids: Tensor) -> list[tuple[Tensor, ...]]:
        """What is kept of each image: (merged, *deepstack) features if frozen, else (patches,)."""
        pictures = [open_image(image) for image in images]
        out = self.image_processor(images=pictures, return_tensors="pt")
        if not torch.equal(out["image_grid_thw"], grids):
            raise ValueError(
                f"image grids {out['image_grid_thw'].tolist()} differ from the prepared {grids.tolist()}: "
                "the processor's pixel limits changed since the dataset was prepared; prepare it again"
            )
        patches = out["pixel_values"]
        if not self.frozen:
            return [(piece,) for piece in patches.split(grids.prod(-1).tolist())]
        with torch.no_grad():
            features = encode_images(self.model, patches.to(self.device), grids.to(self.device))
        self._as_tensors = features.as_tensors
        levels = [level.split(features.lengths) for level in (features.merged_TD, *features.deepstack)]
        return [tuple(level[i] for level in levels) for i in range(len(images))]

    def _keep(self, fresh: dict[bytes, tuple[Tensor, ...]]) -> None:
        size = sum(tensor.numel() * tensor.element_size() for part in fresh.values() for tensor in part)
        if self._bytes + size <= CACHE_BYTES:
            self._kept.update(fresh)
            self._bytes += size
