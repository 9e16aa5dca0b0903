"""Stages in one process, and a consolidated model anyone can load."""

import math
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from bard_core.models import bard_settings, load
from bard_core.store import artifacts
from bard_core.training.checkpoints import writer
from bard_core.training.checkpoints.consolidate import consolidate
from bard_core.training.curve import read_curve
from bard_core.training.spec import StageSpec, checkpoint_ref, run_of
from bard_core.training.stage import prepare_base, run_stage

from .conftest import stage_specs
from .workers import same, state_of


def weights(ref):
    return load_file(artifacts.fetch(ref) / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """(spec, base folder, final checkpoint) of a source run of three steps."""
    spec = stage_specs(tiny_dataset, None, steps=3)["source"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARD_HOME", str(tmp_path_factory.mktemp("home")))
        run = run_of(spec)
        base = prepare_base(spec, run)
        return spec, artifacts.fetch(base), run_stage(spec, base, run)


def test_a_finished_run_is_registered_and_comes_back_as_it_is(trained):
    spec, base, final = trained
    ref = checkpoint_ref(spec, str(base), final)
    assert (ref.step, ref.stage, ref.uri) == (3, "source", final)
    run = writer.Run(final.rsplit("/", 1)[0], spec.origin)
    assert artifacts.read_manifest(final).metadata["origin"] == spec.origin
    assert run_stage(spec, str(base), run) == final
    assert artifacts.verify(final).digest == ref.key


STRANGER = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
model, report = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
processor = AutoProcessor.from_pretrained(sys.argv[1])
ids = processor.tokenizer("A=3 F=0", return_tensors="pt").input_ids
torch.save(model(input_ids=ids).logits.detach(), sys.argv[2])
assert not [name for name in sys.modules if name.split(".")[0] in ("bard_core", "tasks")]
"""


def test_a_stranger_loads_the_model_and_gets_the_same_logits(source_model, tmp_path):
    folder = artifacts.fetch(source_model)
    subprocess.run([sys.executable, "-c", STRANGER, str(folder), str(tmp_path / "logits.pt")], check=True, cwd=tmp_path)
    model = load(folder)
    ids = AutoProcessor.from_pretrained(folder).tokenizer("A=3 F=0", return_tensors="pt").input_ids
    assert torch.equal(model(input_ids=ids).logits, torch.load(tmp_path / "logits.pt", weights_only=True))


def test_consolidated_model_holds_what_was_trained(source_model):
    folder = artifacts.fetch(source_model)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert AutoProcessor.from_pretrained(folder).tokenizer.convert_tokens_to_ids("<|mask|>") == model.config.bard["mask_token_id"]
    assert bard_settings(load(folder)).block_size == 1
    stored = weights(source_model)
    assert "lm_head.weight" not in stored  # tied
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())


def test_consolidation_is_deterministic_and_shards(trained, tmp_path):
    _, base, final = trained
    one, two = consolidate(final, tmp_path / "1", base), consolidate(final, tmp_path / "2", base)
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    many = consolidate(final, tmp_path / "3", base, max_shard_bytes=20_000, dtype=torch.bfloat16)
    assert len(list(many.glob("model-*.safetensors"))) > 2
    whole, split = load(one), load(many, dtype=torch.bfloat16)
    reference = whole.state_dict()
    assert all(torch.equal(reference[name].bfloat16(), tensor) for name, tensor in split.state_dict().items())


def test_epochs_are_steps_of_the_dataset(tiny_dataset, source_model, bard_home):
    """A run, its name and its curve are those of the same run told in steps; its last step reaches into the next epoch."""
    batch = 10
    steps = math.ceil(1.5 * tiny_dataset.num_train / batch)
    twice = tiny_dataset.model_copy(update={"epoch_samples": 2 * tiny_dataset.num_train})  # as weights of 2 have it
    assert stage_specs(twice, source_model, batch_size=batch, steps=0, num_epochs=0.75)["pbm"].train.steps == steps
    for stage in ("source", "pbm", "swd"):
        by_epochs, by_steps = (
            stage_specs(tiny_dataset, source_model, batch_size=batch, **length)[stage]
            for length in ({"steps": 0, "num_epochs": 1.5}, {"steps": steps})
        )
        assert by_epochs.train.steps == steps > 1 and by_epochs.train.num_epochs == 0
        assert by_epochs.digest == by_steps.digest
    run = run_of(by_epochs)
    final = run_stage(by_epochs, prepare_base(by_epochs, run), run)
    records = read_curve(f"{run.uri}/curve.jsonl")
    assert final == run.checkpoint(steps) and records[-1]["step"] == steps
    for record in records:  # the loss apart
        assert record["loss"] == pytest.approx(record["ce"] + 0.5 * record["kl"], rel=1e-5)
        assert 0 < record["teacher_entropy"] <= record["kl"] * 1.0001 and "ar" not in record


def test_spec_digest_names_what_matters(tiny_dataset):
    spec = stage_specs(tiny_dataset, None)["source"]
    moved = spec.model_copy(update={"dataset": tiny_dataset.model_copy(update={"uri": "/elsewhere"})})
    assert moved.digest == spec.digest
    assert stage_specs(tiny_dataset, None, seed=1)["source"].digest != spec.digest
    assert StageSpec.model_validate_json(spec.model_dump_json()).origin == spec.origin


def test_loader_processes_change_no_weight_and_say_how_long_training_waited(tiny_dataset, bard_home):
    """Images decoded by another process, vision side trained, interrupted after two steps: the weights are the same."""
    spec = stage_specs(tiny_dataset, None, steps=3, checkpoint_every=2)["source"]
    run = run_of(spec)
    base = prepare_base(spec, run)
    alone = state_of(run_stage(spec, base, run))
    shutil.rmtree(f"{run.uri}/step-000003")
    assert same(state_of(run_stage(spec, base, run, data_workers=1)), alone)
    assert all(0 <= record["data_wait"] <= 1 for record in read_curve(f"{run.uri}/curve.jsonl"))
