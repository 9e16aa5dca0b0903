"""Resuming is exact: 8 steps are 4 steps, a kill and 4 more, bit for bit: weights, optimizer, losses, samples and noise."""

import io
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bard_core.config.sections.data import DataConfig
from bard_core.config.sources import RawSource
from bard_core.data.prepare import prepare
from bard_core.training.checkpoints import dcp
from bard_core.training.spec import run_of
from bard_core.training.stage import prepare_base

from .conftest import stage_specs
from .workers import losses, parts, same, state_of, train


def drop_last(run, steps):
    shutil.rmtree(Path(run.uri) / f"step-{steps:06d}")


@pytest.mark.parametrize("stage", ["source", "pbm", "swd"])
@pytest.mark.parametrize("world", [1, 2])
def test_four_and_four_are_eight(stage, world, tiny_dataset, source_model, bard_home):
    spec = stage_specs(tiny_dataset, source_model, steps=8, checkpoint_every=4, log_every=3)[stage]  # 4 is between two log lines
    run, taken = train(spec, world)
    whole, curve = state_of(run.checkpoint(8)), parts(run)
    assert len(curve[0]) == {"source": 3, "pbm": 3, "swd": 5}[stage]
    assert {name for name in whole if "exp_avg" in name} and any(torch.is_tensor(value) for value in whole.values())
    drop_last(run, 8)
    _, rest = train(spec, world)
    assert rest == taken[4:]
    assert same(whole, state_of(run.checkpoint(8))) and parts(run) == curve


@pytest.mark.parametrize("worlds", [(1, 2), (2, 3)])
def test_another_number_of_workers_sees_each_sample_once(worlds, tiny_dataset, source_model, bard_home):
    spec = stage_specs(tiny_dataset, source_model, steps=6, checkpoint_every=3)["pbm"]
    run, reference = train(spec, 1)
    whole, curve = state_of(run.checkpoint(6)), losses(run)
    shutil.rmtree(run.uri)
    _, first = train(spec, worlds[0])
    drop_last(run, 6)
    _, second = train(spec, worlds[1])
    for step, (alone, ranks) in enumerate(zip(reference, [*first[:3], *second], strict=True)):
        assert sorted(s for rank in ranks for s in rank["samples"]) == sorted(alone[0]["samples"]), step
    assert [loss for _, loss in losses(run)] == pytest.approx([loss for _, loss in curve], rel=1e-4)
    for name, value in state_of(run.checkpoint(6)).items():
        if name.startswith("model."):
            torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-4)
    names = {name: value.dtype for name, value in whole.items() if name.startswith("model.")}
    read = dcp.tensors(Path(run.checkpoint(6)), names)  # what consolidation reads of several ranks' pieces
    assert all(torch.equal(read[name], value) for name, value in state_of(run.checkpoint(6)).items() if name in names)


def test_ranks_need_not_all_have_images(source_model, tmp_path, bard_home):
    """Every other sample is text alone, the vision side trains, and each rank has one sample a step."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 32), (200, 0, 0)).save(picture, format="PNG")
    rows = [
        {"images": [{"bytes": picture.getvalue()}] * (i % 2), "texts": [{"user": f"Read {i}.", "assistant": f"A={i}"}]}
        for i in range(8)
    ]
    (tmp_path / "raw").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw" / "0.parquet")
    source = RawSource(name="raw", schema_name="finevision", uri=str(tmp_path / "raw"))
    dataset = prepare(DataConfig(sources=(source,), eval_fraction=0.0), str(tmp_path / "dataset"))
    spec = stage_specs(dataset, source_model, steps=4, batch_size=2, frozen=False)["pbm"]
    run, _ = train(spec, 1)
    alone = losses(run)
    shutil.rmtree(run.uri)
    run, taken = train(spec, 2)
    pictured = [[int(rank["samples"][0][0].split("/")[-1]) % 2 for rank in step] for step in taken]
    assert [0, 1] in pictured or [1, 0] in pictured
    assert [loss for _, loss in losses(run)] == pytest.approx([loss for _, loss in alone], rel=1e-4)


def test_what_a_model_draws_at_random_is_drawn_again(tiny_dataset, bard_home):
    spec = stage_specs(tiny_dataset, None, steps=4, checkpoint_every=2)["source"]
    base = prepare_base(spec, run_of(spec))
    config = Path(base) / "config.json"
    dropout = config.read_text().replace('"attention_dropout": 0.0', '"attention_dropout": 0.5')
    assert dropout != config.read_text()
    other = bard_home / "dropout"
    shutil.copytree(base, other)
    (other / "config.json").write_text(dropout)
    (other / "manifest.json").unlink()
    from bard_core.store import artifacts

    artifacts.commit_directory(other, str(other), kind="model")
    run, _ = train(spec, base=str(other))
    whole, curve = state_of(run.checkpoint(4)), losses(run)
    drop_last(run, 4)
    train(spec, base=str(other))
    assert same(whole, state_of(run.checkpoint(4)))
    shutil.rmtree(run.uri)
    train(spec)
    assert losses(run) != curve  # or nothing was drawn at all
