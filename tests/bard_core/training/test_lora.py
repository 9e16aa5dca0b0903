"""Adapters train alone, go on from a checkpoint, and are part of the weights once a checkpoint is consolidated."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from bard_core.config.sections.train import LoraConfig, TrainConfig
from bard_core.models import adapters, load
from bard_core.store import artifacts
from bard_core.training.checkpoints.consolidate import consolidate
from bard_core.training.spec import run_of
from bard_core.training.stage import run_stage

from .conftest import stage_specs
from .workers import same, state_of, train

LORA = LoraConfig(rank=2, alpha=8.0)


@pytest.fixture(scope="module")
def trained(tiny_dataset, source_model, tmp_path_factory):
    """(spec, the run) of four steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARD_HOME", str(tmp_path_factory.mktemp("home")))
        spec = stage_specs(tiny_dataset, source_model, steps=4, checkpoint_every=2, lora=LORA)["pbm"]
        run = run_of(spec)
        run_stage(spec, spec.parent.uri, run)
        return spec, run


def test_a_run_goes_on_with_the_adapters_it_had(trained):
    spec, run = trained
    before = state_of(run.checkpoint(4))
    shutil.rmtree(run.checkpoint(4))
    run_stage(spec, spec.parent.uri, run)
    assert same(state_of(run.checkpoint(4)), before)
    moments = [name for name in before if name.endswith("exp_avg")]
    assert moments and all(".lora_" in name for name in moments)


def test_the_consolidated_model_has_merged_weights(trained, tmp_path):
    spec, run = trained
    source = artifacts.fetch(spec.parent)
    folder = consolidate(run.checkpoint(4), tmp_path / "model", source)
    before, after = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".layers." in name and "_proj." in name and "language_model" in name}
    model = load(source)
    adapters.adapt(model, LORA)
    whole = state_of(run.checkpoint(4))
    model.load_state_dict({name.removeprefix("model."): whole[name] for name in whole if name.startswith("model.")})
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        expected, found = model(input_ids=ids).logits, load(folder)(input_ids=ids).logits
        assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(
            found, load(source)(input_ids=ids).logits, atol=1e-3
        )


def test_adapters_that_fit_nothing_are_refused(source_model):
    with pytest.raises(ValueError, match=r"lora.targets \['qkv'\]: the model's decoder layers have down_proj, gate_proj"):
        adapters.adapt(load(artifacts.fetch(source_model)), LoraConfig(targets=("qkv",)))
    with pytest.raises(ValueError, match="leave one out"):
        TrainConfig(steps=1, lora=LORA, optimizer={"freeze_language": True, "vision_lr": 1e-3})


@pytest.mark.faults
def test_two_ranks_adapt_as_one(trained, bard_home):
    spec, run = trained
    two, _ = train(spec, 2)
    alone = state_of(run.checkpoint(4))
    for name, value in state_of(two.checkpoint(4)).items():
        if name.startswith("model."):
            torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4)
