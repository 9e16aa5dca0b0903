"""A patch embedding by one product: the convolution's numbers and gradients, and its parameters and bytes untouched."""

import copy

import pytest
import torch
from torch import nn

from bard_core.models import load
from bard_core.models.patches import PatchConv3d, embed_by_product

from .families import build


def numbers(model: nn.Module, patches: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    out = model(patches)
    out.square().sum().backward()
    return [out.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize(
    ("kind", "kernel", "size", "dtype"),
    [
        (nn.Conv3d, (2, 16, 16), (2, 16, 16), torch.float32),
        (nn.Conv3d, (2, 16, 16), (2, 16, 16), torch.bfloat16),
        (nn.Conv2d, (14, 14), (14, 14), torch.float32),
        (nn.Conv2d, (14, 14), (56, 28), torch.float32),  # a whole image: still a convolution
    ],
)
def test_product_and_convolution_agree(kind, kernel, size, dtype):
    torch.manual_seed(0)
    convolution = kind(3, 32, kernel_size=kernel, stride=kernel).to(dtype)
    product = copy.deepcopy(convolution)
    embed_by_product(product)
    assert type(product) is not kind and isinstance(product, kind)
    patches = torch.randn(5, 3, *size, dtype=dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
    for mine, theirs in zip(numbers(product, patches), numbers(convolution, patches), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.mark.parametrize("other", [{"stride": 8}, {"padding": 1}, {"dilation": 2}, {"groups": 3}])
def test_other_convolutions_stay(other):
    convolution = nn.Conv2d(3, 6, **{"kernel_size": 16, "stride": 16, **other})
    embed_by_product(convolution)
    assert type(convolution) is nn.Conv2d


def test_a_loaded_model_embeds_by_product_and_is_saved_as_it_was(tmp_path):
    stock, _ = build("qwen3_vl")
    stock.save_pretrained(tmp_path / "stock")
    model = load(tmp_path / "stock")
    assert type(model.model.visual.patch_embed.proj) is PatchConv3d
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "stock" / "model.safetensors").read_bytes()
