"""Stages in one process: resumed equals uninterrupted, all three objectives, and a consolidated model anyone can load."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from bard_core import artifacts
from bard_core.artifacts import ModelRef
from bard_core.config import NoiseConfig, SWDConfig
from bard_core.models import bard_settings, load
from bard_core.training import checkpoint
from bard_core.training.consolidate import consolidate
from bard_core.training.stage import CURVE, StageSpec, prepare_base, read_curve, run_folder, run_stage

from .conftest import TINY_MODEL, tiny_train


def source_spec(dataset, **kwargs):
    return StageSpec(
        stage="source", dataset=dataset, train=tiny_train(frozen=False, **kwargs), lab_model=TINY_MODEL, clean_attention="causal"
    )


def finish(spec, out):
    """Train, consolidate, and return the model's ref."""
    base = prepare_base(spec)
    final = run_stage(spec, base)
    folder = consolidate(final, out, base, bard={"block_size": spec.block_size, "clean_attention": spec.clean_attention})
    manifest = artifacts.commit_directory(folder, str(out) + "-model", kind="model")
    return ModelRef(
        uri=str(out) + "-model", manifest_sha256=manifest.digest, stage=spec.stage, block_size=spec.block_size, parent_sha256=None
    )


@pytest.fixture(scope="module")
def source(tiny_dataset, tmp_path_factory):
    return finish(source_spec(tiny_dataset, steps=4), tmp_path_factory.mktemp("models") / "source")


def weights(folder):
    return load_file(artifacts.fetch(folder) / "model.safetensors") if isinstance(folder, ModelRef) else load_file(folder)


def stage_specs(dataset, source):
    pbm = StageSpec(stage="pbm", dataset=dataset, train=tiny_train(), parent=source, block_size=4)
    swd = StageSpec(
        stage="swd",
        dataset=dataset,
        train=tiny_train(),
        parent=source,
        block_size=8,
        noise=NoiseConfig(min_t=0.1, max_t=0.5),
        swd=SWDConfig(train=tiny_train(), block_sizes=(8,)),
        teacher=source.model_copy(update={"block_size": 4, "stage": "pbm"}),
    )
    return {"source": source_spec(dataset, steps=6), "pbm": pbm, "swd": swd}


@pytest.mark.parametrize("stage", ["source", "pbm", "swd"])
def test_resumed_is_uninterrupted(tiny_dataset, source, stage, tmp_path, monkeypatch):
    spec = stage_specs(tiny_dataset, source)[stage]
    results = {}
    for attempt in ("whole", "resumed"):
        monkeypatch.setenv("BARD_HOME", str(tmp_path / attempt))
        base = prepare_base(spec)
        final = run_stage(spec, base)
        if attempt == "resumed":
            shutil.rmtree(final)  # as if the kill came after step 3
            assert (
                checkpoint.latest_complete(run_folder(spec), spec.digest, spec.parent.key if spec.parent else "none").name
                == "step-000003"
            )
            final = run_stage(spec, base)
        consolidate(final, tmp_path / attempt / "model", base)
        results[attempt] = (weights(tmp_path / attempt / "model" / "model.safetensors"), read_curve(run_folder(spec) / CURVE))
    (whole, curve), (resumed, curve_resumed) = results["whole"], results["resumed"]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [r["loss"] for r in curve] == [r["loss"] for r in curve_resumed]
    assert [r["step"] for r in curve] == [1, 2, 3, 4, 5, 6]


def test_torn_checkpoint_is_passed_over(tiny_dataset, bard_home, caplog):
    spec = source_spec(tiny_dataset, steps=6)
    final = run_stage(spec, prepare_base(spec))
    shard = next(final.glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    found = checkpoint.latest_complete(run_folder(spec), spec.digest, "none")
    assert found is not None and found.name == "step-000003"
    assert "changed" in caplog.text
    assert checkpoint.latest_complete(run_folder(spec), "another", "none") is None


def test_consolidated_model_loads_without_our_code(source):
    folder = artifacts.fetch(source)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert AutoProcessor.from_pretrained(folder).tokenizer.convert_tokens_to_ids("<|mask|>") == model.config.bard["mask_token_id"]
    assert bard_settings(load(folder)).block_size == 1
    stored = weights(source)
    assert "lm_head.weight" not in stored  # tied
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())


def test_consolidation_is_deterministic_and_shards(tiny_dataset, bard_home, tmp_path):
    spec = source_spec(tiny_dataset, steps=3)
    base = prepare_base(spec)
    final = run_stage(spec, base)
    one, two = consolidate(final, tmp_path / "1", base), consolidate(final, tmp_path / "2", base)
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    many = consolidate(final, tmp_path / "3", base, max_shard_bytes=20_000, dtype=torch.bfloat16)
    assert len(list(many.glob("model-*.safetensors"))) > 2
    whole, split = load(one), load(many, dtype=torch.bfloat16)
    reference = whole.state_dict()
    assert all(torch.equal(reference[name].bfloat16(), tensor) for name, tensor in split.state_dict().items())


def test_spec_digest_names_what_matters(tiny_dataset):
    spec = source_spec(tiny_dataset)
    moved = spec.model_copy(update={"dataset": tiny_dataset.model_copy(update={"uri": "/elsewhere"})})
    assert moved.digest == spec.digest
    assert source_spec(tiny_dataset, seed=1).digest != spec.digest
