"""What trains, at which rate, and what weight decay touches."""

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoProcessor

from bard_core.config.sections.train import OptimizerConfig
from bard_core.lab.model import build_lab_model
from bard_core.store import artifacts
from bard_core.training.optimizer import build_optimizer, freeze

from .conftest import TINY_MODEL
from .test_step import tiny_model


@pytest.fixture
def model(tiny_dataset):
    processor = AutoProcessor.from_pretrained(artifacts.fetch(tiny_dataset) / "processor")
    return build_lab_model(TINY_MODEL, processor, 64, seed=0)


def names_by(model, optimizer, key):
    """Parameter names by a setting of their group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        found.setdefault(group[key], set()).update(names[id(parameter)] for parameter in group["params"])
    return found


def test_decay_leaves_norms_biases_and_embeddings_alone(model):
    """Of parameters with no gradient but zero, decay alone moves some: exactly the matrices that are not embeddings."""
    config = OptimizerConfig(lr=0.1, vision_lr=0.1, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        parameter.data.add_(1.0)
    optimizer.step()
    kept = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name] + 1.0)}
    assert {
        "model.language_model.embed_tokens.weight",
        "model.visual.pos_embed.weight",
        "model.language_model.norm.weight",
    } <= kept
    assert {name for name in before if "norm" in name or name.endswith("bias")} <= kept
    decayed = set(before) - kept
    assert {"model.language_model.layers.0.mlp.up_proj.weight", "model.visual.patch_embed.proj.weight"} <= decayed
    assert not [name for name in decayed if "norm" in name or "bias" in name or "embed_tokens" in name or "pos_embed" in name]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)


def test_an_untied_head_decays():
    model = tiny_model()
    decays = names_by(model, build_optimizer(model, OptimizerConfig(weight_decay=0.1)), "weight_decay")
    assert "lm_head.weight" in decays[0.1] and "model.embed_tokens.weight" in decays[0.0]


def test_parts_keep_their_rates(model):
    config = OptimizerConfig(lr=1e-3, vision_lr=1e-4, merger_lr=1e-5)
    rates = names_by(model, build_optimizer(model, config), "peak_lr")
    assert all("visual" in name for name in rates[1e-4] | rates[1e-5]) and all("merger" in name for name in rates[1e-5])
    assert "model.language_model.embed_tokens.weight" in rates[1e-3] and not any("visual" in name for name in rates[1e-3])


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({"freeze_embeddings": True}, lambda name: "embed_tokens" in name),
        ({"freeze_language": True}, lambda name: "visual" not in name),
        ({"freeze_language": True, "merger_lr": 0.0}, lambda name: "visual" not in name or "merger" in name),
        ({"vision_lr": 0.0, "merger_lr": 0.0}, lambda name: "visual" in name),
    ],
)
def test_frozen_parts_have_no_gradient_and_no_state(model, options, frozen):
    config = OptimizerConfig(**{"lr": 1e-3, "vision_lr": 1e-3, **options})
    assert freeze(model, config) == ("vision_lr" in options)
    wanted = {name for name, _ in model.named_parameters() if not frozen(name)}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == wanted
    assert set().union(*names_by(model, build_optimizer(model, config), "lr").values()) == wanted


def test_something_must_train():
    with pytest.raises(ValidationError, match="leaves nothing to train"):
        OptimizerConfig(freeze_language=True, vision_lr=0.0, merger_lr=0.0)
    with pytest.raises(ValueError, match="every part of the model is frozen: raise vision_lr"):
        build_optimizer(tiny_model(), OptimizerConfig(freeze_language=True))  # a model that sees nothing
