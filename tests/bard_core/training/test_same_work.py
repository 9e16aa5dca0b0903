"""The same work gives the same artifact: trained again, in another process, on S3, from another layout of shards."""

import shutil
from pathlib import Path

import pytest
import torch

from bard_core.config.sections.compute import CheckpointConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.store import artifacts, storage
from bard_core.training.checkpoints import writer
from bard_core.training.checkpoints.consolidate import consolidate
from bard_core.training.spec import checkpoint_ref, run_of
from bard_core.training.stage import prepare_base, run_stage
from tasks.consolidate import consolidate as consolidate_task

from .conftest import stage_specs
from .workers import state_of
from .workers import train as train_in_processes

STEPS = 20


@pytest.fixture(scope="module")
def spec(tiny_dataset, source_model):
    return stage_specs(tiny_dataset, source_model, steps=STEPS, checkpoint_every=10, log_every=5)["pbm"]


def trained(spec, settings=None):
    """The ref of the run's final checkpoint, trained here as far as it is not."""
    run = run_of(spec, settings or CheckpointConfig())
    base = prepare_base(spec, run)
    return checkpoint_ref(spec, base, run_stage(spec, base, run))


def model_of(checkpoint, root=""):
    place = {"storage_config": StorageConfig(root_uri=root), "tracking": TrackingConfig(), "parent_run": ""}
    return consolidate_task.task_function(checkpoint=checkpoint, clean_attention="block", **place)


@pytest.fixture(scope="module")
def first(spec, tmp_path_factory):
    """(checkpoint, model) of the first time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARD_HOME", str(tmp_path_factory.mktemp("first")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        checkpoint = trained(spec)
        return checkpoint, model_of(checkpoint)


def test_the_last_ten_steps_again(spec, first, tmp_path, monkeypatch):
    home = Path(first[0].uri).parents[2]
    shutil.copytree(home / "checkpoints", tmp_path / "home" / "checkpoints")
    monkeypatch.setenv("BARD_HOME", str(tmp_path / "home"))
    final = run_of(spec).checkpoint(STEPS)
    shutil.rmtree(final)
    again = trained(spec)
    assert again.uri == final != first[0].uri and again.key == first[0].key
    assert model_of(again).key == first[1].key


def test_in_a_process_of_its_own_and_on_s3(spec, first, bard_home, s3_root):
    settings = CheckpointConfig(root_uri=s3_root)
    run, _ = train_in_processes(spec, 1, settings=settings)
    assert run.uri.startswith("s3://")
    again = checkpoint_ref(spec, spec.parent.uri, run.checkpoint(STEPS))
    assert again.key == first[0].key
    model = model_of(again, s3_root)
    assert model.uri.startswith("s3://") and model.key == first[1].key
    fetched, here = artifacts.fetch(model), artifacts.fetch(first[1])
    assert {p.name: p.read_bytes() for p in fetched.iterdir()} == {p.name: p.read_bytes() for p in here.iterdir()}


def test_shards_of_two_ranks_make_the_model_of_one(spec, first, bard_home, tmp_path):
    """Numbers of two ranks differ in their last bits, so the very same weights are laid out both ways."""
    run, _ = train_in_processes(spec, 2)
    folder = Path(run.checkpoint(STEPS))
    assert len(list(folder.glob("__*.distcp"))) == len(list(folder.glob("optimizer__*.distcp"))) == 2
    weights = {name: tensor for name, tensor in state_of(folder).items() if name.startswith("model.")}
    alone = tmp_path / "alone"
    torch.distributed.checkpoint.save(weights, checkpoint_id=str(alone), no_dist=True)
    origin = artifacts.read_manifest(str(folder))
    facts = {"step": STEPS, "config_digest": origin.config_digest, "parent_digest": origin.parent_digest}
    artifacts.commit_directory(alone, str(alone), kind="checkpoint", **facts)
    source = artifacts.fetch(spec.parent)
    two, one = consolidate(folder, tmp_path / "two", source), consolidate(alone, tmp_path / "one", source)
    assert artifacts.file_entries(two) == artifacts.file_entries(one)


def test_nothing_of_a_checkpoint_names_a_place_a_time_or_a_save(first):
    folder = Path(first[0].uri)
    home = str(folder.parents[2]).encode()
    assert writer.dcp.SafeReader(str(folder)).read_metadata().storage_meta is None
    model = artifacts.fetch(first[1])
    for path in (*folder.iterdir(), *model.iterdir()):
        assert home not in path.read_bytes() and b"/staging/" not in path.read_bytes(), path
    curve = (model / "training_curve.jsonl").read_text()
    assert '"loss"' in curve and "train_s" not in curve and "per_s" not in curve
    assert '"train_s"' in storage.read_bytes(first[1].curve_uri).decode(), "the report reads what the run itself kept"
