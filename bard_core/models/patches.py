"""Patch embeddings as the matrix product that they are.

Vision towers cut images into patches first, and embed each with a convolution whose kernel is as large as the patch: one
position, so one product. Several cuDNN versions run the 3-D form 10 to 100 times slower than that. Only the forward pass is
another here: parameters keep their shapes and names, so checkpoints and saved models are as ever.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class _OneProduct:
    """A convolution's forward pass where the input is as large as the kernel."""

    def forward(self, patches: Tensor) -> Tensor:
        assert isinstance(self, nn.Conv2d | nn.Conv3d)
        if tuple(patches.shape[2:]) != self.kernel_size:
            return super().forward(patches)  # type: ignore[misc,no-any-return]
        out = F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return out.view(*out.shape, *[1] * len(self.kernel_size))


class PatchConv2d(_OneProduct, nn.Conv2d):
    pass


class PatchConv3d(_OneProduct, nn.Conv3d):
    pass


PRODUCTS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: PatchConv2d, nn.Conv3d: PatchConv3d}


def embed_by_product(model: nn.Module) -> None:
    """Switch every convolution that steps by its own kernel, unpadded, to the product, in place."""
    for module in model.modules():
        product = PRODUCTS.get(type(module))
        if product is not None and _is_patch(module):
            module.__class__ = product


def _is_patch(module: nn.Module) -> bool:
    assert isinstance(module, nn.Conv2d | nn.Conv3d)
    plain = module.groups == 1 and not module.transposed and module.padding_mode == "zeros"
    at_rest = all(step == 1 for step in module.dilation) and module.padding in ("valid", (0,) * len(module.kernel_size))
    return plain and at_rest and tuple(module.stride) == tuple(module.kernel_size)
