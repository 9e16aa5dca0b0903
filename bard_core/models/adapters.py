"""Low-rank adapters on the language model's linear layers (Hu et al. 2021, arXiv 2106.09685), by peft, for users of one GPU.

A layer's weight W stays as it is; the layer computes (W + scale x B A) x. ``B`` starts at zero, so training starts at the model.
A checkpoint holds W, A and B under peft's names; consolidation writes the sum under the stock name, so no reader knows of them.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from bard_core.config.sections.train import LoraConfig
from bard_core.diffusion.noise import generator_for
from bard_core.models.vlm import decoder_layers
from bard_core.models.weights import BASE

DOWN, UP = ".lora_A.default.", ".lora_B.default."


def adapt(model: Any, config: LoraConfig) -> None:
    """Give the decoder's layers adapters, in place and not yet initialised.

    Raises:
        ValueError: no layer has one of the names in ``targets``.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules() if isinstance(module, nn.Linear)}
    linear = [name for name, module in model.named_modules() if id(module) in inside]
    chosen = [name for name in linear if name.rpartition(".")[2] in config.targets]
    if not chosen:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(f"lora.targets {list(config.targets)}: the model's decoder layers have {', '.join(known)}")
    shape: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    peft_config = PeftConfig(**shape, target_modules=chosen, init_lora_weights=False)
    inject_adapter_in_model(peft_config, model)


def is_adapter(name: str) -> bool:
    """Whether a tensor's name is that of an adapter."""
    return DOWN in name or UP in name


@torch.no_grad()
def initialise(model: Any, seed: int) -> None:
    """A as peft draws it (uniform within 1 / sqrt(inputs)), B zero; the same however the model is sharded."""
    for name, parameter in model.named_parameters():
        if UP in name:
            parameter.zero_()
        elif DOWN in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator_for(seed, name, 0))
            parameter.copy_(_shared_out(drawn.to(parameter.device), parameter))


def _shared_out(whole: Tensor, like: Any) -> Tensor:
    if not hasattr(like, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def adapters_of(stored: str) -> tuple[str, str]:
    """The names of A and B beside the weight that is stored under this name."""
    layer, _, weight = stored.rpartition(BASE)
    return f"{layer}{DOWN}{weight}", f"{layer}{UP}{weight}"


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale x B A, in W's dtype."""
    return (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)
