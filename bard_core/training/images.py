"""Images of a batch to what the objective takes: features from a frozen tower, which sees each image once, else patches."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bard_core.data.pictures import decode, scale
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

    def __call__(
        self, images: Sequence[bytes], grid_thw: Sequence[Sequence[int]], patches: Tensor | None = None
    ) -> ImageFeatures | Patches | None:
        """``patches``: of all the images, decoded before (``data.pictures.decode``)."""
        if not images:
            return None
        grids = torch.tensor(grid_thw)
        if patches is not None and not self.frozen:
            return Patches(scale(self.image_processor, patches.to(self.device, non_blocking=True)), grids)
        keys = [hashlib.blake2b(image, digest_size=16).digest() for image in images]
        fresh = {key: i for i, key in enumerate(keys) if key not in self._kept}
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if fresh:
            at = list(fresh.values())
            if patches is None:
                decoded = decode(self.image_processor, [images[i] for i in at], grids[at].tolist())
            else:
                pieces = patches.split(grids.prod(-1).tolist())
                decoded = torch.cat([pieces[i] for i in at])
            new = dict(zip(fresh, self._compute(decoded, grids[at]), strict=True))
            self._keep(new)
            found |= new
        parts = [found[key] for key in keys]
        if self.frozen:
            merged, *deepstack = (torch.cat(level) for level in zip(*parts, strict=True))
            lengths = tuple(part[0].shape[0] for part in parts)
            return ImageFeatures(merged, tuple(deepstack), lengths, self._as_tensors).to(self.device)
        together = torch.cat([part[0] for part in parts]).to(self.device)
        return Patches(scale(self.image_processor, together), grids)

    def _compute(self, patches: Tensor, grids: Tensor) -> list[tuple[Tensor, ...]]:
        """What is kept of each image: (merged, *deepstack) features if frozen, else (patches,)."""
        if not self.frozen:
            return [(piece,) for piece in patches.split(grids.prod(-1).tolist())]
        with torch.no_grad():
            values = scale(self.image_processor, patches.to(self.device, non_blocking=True))
            features = encode_images(self.model, values, grids)
        self._as_tensors = features.as_tensors
        levels = [level.split(features.lengths) for level in (features.merged_TD, *features.deepstack)]
        return [tuple(level[i] for level in levels) for i in range(len(grids))]

    def _keep(self, fresh: dict[bytes, tuple[Tensor, ...]]) -> None:
        size = sum(tensor.numel() * tensor.element_size() for part in fresh.values() for tensor in part)
        if self._bytes + size <= CACHE_BYTES:
            self._kept.update(fresh)
            self._bytes += size
