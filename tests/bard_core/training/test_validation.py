"""A look at held-out samples tells what it says, the same from however many ranks, and leaves training as it was."""

import shutil
from dataclasses import replace

import pytest
import torch

from bard_core.config.sections.compute import CheckpointConfig
from bard_core.config.sections.train import TrainConfig
from bard_core.diffusion.layout import attention_mask
from bard_core.models.attention import hidden_states
from bard_core.store import artifacts, storage
from bard_core.training import stage
from bard_core.training.checkpoints import retention
from bard_core.training.curve import CURVE, lasting, read_curve
from bard_core.training.objectives import ProgressiveBlockMerging
from bard_core.training.spec import run_of
from bard_core.training.stage import run_stage
from bard_core.training.validation import BANDS, Validation

from .conftest import stage_specs
from .test_step import CPU, EOS, MASK, examples_for, tiny_model
from .workers import state_of, train

LEVELS = [f"val_{what}_t{level}" for level in (10, 30, 50, 70, 90) for what in ("loss", "accuracy")]


class HeldOut:
    """Five samples as a walk has them."""

    def __init__(self, model):
        self.reader = examples_for(model, 5)

    def read(self, at):
        return self.reader[at]


def test_numbers_are_those_of_whole_logits():
    from bard_core.config.sections.noise import NoiseConfig
    from bard_core.data.batches import BatchSpec

    model = tiny_model()
    spec = BatchSpec(8, NoiseConfig(min_t=0.4), MASK, EOS, 0, torch.arange(1, 490), max_tokens_per_row=200, seed=3)
    look = Validation(HeldOut(model), spec, 5, 2, lambda *_: None, "float32", CPU)
    objective = ProgressiveBlockMerging(model, "block", "mask", 0.0)
    found = look(objective)
    assert look(objective) == found and objective.training and not any(p.grad is not None for p in model.parameters())
    assert set(found) == {*LEVELS, "val_loss", "val_accuracy"}
    totals = torch.zeros(3)
    for (low, high), batches in zip(BANDS, look._ready, strict=True):
        sums = torch.zeros(3)
        for batch in batches:
            where = batch.noisy
            assert bool((where.t_P >= low).all() and (where.t_P <= high).all()) and set(where.weight_P.tolist()) <= {0.0, 1.0}
            mask = attention_mask(batch.table_BL, batch.table_BL, "block")[:, None]
            mask.diagonal(dim1=-2, dim2=-1).fill_(True)
            with torch.no_grad():
                hidden = hidden_states(model, batch.input_ids_BL, batch.position_ids_CBL, mask, None)
                log_p = model.lm_head(hidden).flatten(0, 1)[where.index_P].log_softmax(-1)
            real = where.weight_P > 0
            loss = -log_p.gather(1, where.target_P[:, None]).squeeze(1)[real].sum()
            sums += torch.stack([loss, (log_p.argmax(-1) == where.target_P)[real].sum(), real.sum()])
        name = f"t{50 * (low + high):.0f}"
        assert found[f"val_loss_{name}"] == pytest.approx(float(sums[0] / sums[2]), rel=1e-4)
        assert found[f"val_accuracy_{name}"] == pytest.approx(float(sums[1] / sums[2]), rel=1e-6)
        totals += sums
    assert found["val_loss"] == pytest.approx(float(totals[0] / totals[2]), rel=1e-4)


@pytest.fixture(scope="module")
def looked(tiny_dataset, source_model, tmp_path_factory):
    """(spec, run) of a stage that looks twice in six steps, and its home."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARD_HOME", str(home))
        spec = stage_specs(tiny_dataset, source_model, steps=6, validate_every=3, validate_samples=5)["pbm"]
        run = run_of(spec, CheckpointConfig(keep_last=2, keep_best=1))
        run_stage(spec, spec.parent.uri, run)
    return spec, run, home


def test_training_is_the_same_with_and_without(looked, bard_home):
    spec, run, _ = looked
    plain = spec.model_copy(update={"train": spec.train.model_copy(update={"validate_every": None})})
    other = run_of(plain)
    run_stage(plain, plain.parent.uri, other)
    mine, theirs = (state_of(one.checkpoint(6)) for one in (run, other))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items() if isinstance(value, torch.Tensor))
    curves = [read_curve(storage.join(one.uri, CURVE)) for one in (run, other)]
    assert [record["loss"] for record in curves[0]] == [record["loss"] for record in curves[1]]
    assert [record["step"] for record in curves[0] if "val_loss" in record] == [3, 6]
    assert not any("val_loss" in record for record in curves[1])
    assert set(LEVELS) < set(curves[0][-1]) and b"val_accuracy_t90" in lasting(storage.read_bytes(storage.join(run.uri, CURVE)))


def test_a_resumed_run_looks_again_and_sees_the_same(looked, monkeypatch, tmp_path):
    spec, run, home = looked
    monkeypatch.setenv("BARD_HOME", str(home))
    curve = storage.join(run.uri, CURVE)
    before = lasting(storage.read_bytes(curve))
    copy = tmp_path / "run"
    shutil.copytree(run.uri, copy)
    shutil.rmtree(copy / "step-000006")
    run_stage(spec, spec.parent.uri, replace(run, uri=str(copy)))
    assert lasting((copy / CURVE).read_bytes()) == before


def test_two_ranks_see_what_one_does(looked, bard_home):
    """Five samples over two ranks: one of them looks at a sample that does not count."""
    spec, run, _ = looked
    other, _ = train(spec, 2)
    one, two = (read_curve(storage.join(one.uri, CURVE))[2] for one in (run, other))
    for name in (*LEVELS, "val_loss", "val_accuracy"):
        assert two[name] == pytest.approx(one[name], rel=2e-3, abs=2e-3), name


def test_best_is_by_what_was_seen(tmp_path):
    for step, loss, seen in ((1, 0.1, 0.9), (2, 0.5, 0.3), (3, 0.4, None), (4, 0.3, 0.8)):
        staging = tmp_path / f"staging-{step}"
        staging.mkdir()
        (staging / "shard").write_bytes(b"0")
        notes = {"loss": loss, **({} if seen is None else {"val_loss": seen})}
        uri = retention.checkpoint_uri(str(tmp_path / "run"), step)
        artifacts.commit_directory(staging, uri, kind="checkpoint", step=step, metadata=notes)
    retention.prune(str(tmp_path / "run"), CheckpointConfig(keep_last=1, keep_best=1), 4)
    assert retention.steps(str(tmp_path / "run")) == [2, 4]


def test_what_cannot_be_is_refused(tiny_dataset, source_model, bard_home, monkeypatch):
    with pytest.raises(ValueError, match="validate_every 5 must be a multiple of log_every 2"):
        TrainConfig(steps=1, validate_every=5, log_every=2)
    monkeypatch.setattr(stage.Reader, "__len__", lambda reader: 0 if reader._state[2] == "eval" else 24)
    spec = stage_specs(tiny_dataset, source_model, validate_every=1)["pbm"]
    with pytest.raises(ValueError, match=r"looks at held-out samples, and the dataset has none: data\.eval_fraction"):
        run_stage(spec, spec.parent.uri, run_of(spec))
