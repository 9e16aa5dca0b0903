"""An elastic stage: a block size drawn for each sample and epoch, and from one run a model of each size."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.pbm import PBMConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.diffusion.layout import NOISY
from bard_core.store import artifacts
from bard_core.training.objectives import ProgressiveBlockMerging
from bard_core.training.spec import checkpoint_ref, pbm_spec
from tasks.consolidate import consolidate

from .conftest import tiny_train
from .test_step import EOS, MASK, examples_for, tiny_model
from .workers import same, state_of, train

SIZES = (4, 8, 16)
SPEC = BatchSpec(16, NoiseConfig(min_t=0.2), MASK, EOS, 0, torch.arange(1, 490), max_tokens_per_row=400, block_sizes=SIZES)


def test_sizes_are_drawn_alike_from_seed_sample_and_epoch_alone():
    drawn = Counter(SPEC.drawn(f"sample {number}", epoch) for number in range(400) for epoch in range(3))
    assert set(drawn) == set(SIZES) and all(330 < count < 470 for count in drawn.values())
    again = [SPEC.drawn("one", epoch) for epoch in range(20)]
    assert again == [replace(SPEC, block_size=4).drawn("one", epoch) for epoch in range(20)] and len(set(again)) == 3
    assert again != [replace(SPEC, seed=1).drawn("one", epoch) for epoch in range(20)]
    assert replace(SPEC, block_sizes=()).drawn("one", 0) == 16


def test_each_sample_is_laid_out_as_with_its_size_alone():
    """Same tokens, noise, blocks and weights; and the loss of the batch is that of its samples by their sizes."""
    examples = examples_for(tiny_model(), 6)
    sizes = [SPEC.drawn(example.id, 2) for example in examples]
    assert len(set(sizes)) > 1
    together = collate([(example, 2) for example in examples], SPEC, rows=[[number] for number in range(6)])
    alone = [
        collate([(example, 2)], replace(SPEC, block_size=size, block_sizes=()))
        for example, size in zip(examples, sizes, strict=True)
    ]
    for row, one in enumerate(alone):
        length = one.input_ids_BL.shape[1]
        assert torch.equal(together.input_ids_BL[row, :length], one.input_ids_BL[0])
        assert torch.equal(together.table_BL.block[row, :length], one.table_BL.block[0])
        noisy = one.table_BL.block[0][one.table_BL.role[0] == NOISY]
        assert int(noisy.bincount().max()) == sizes[row]
    objective = ProgressiveBlockMerging(tiny_model(), "causal", "mask", 0.5)
    with torch.no_grad():
        whole = objective(together, None)
        parts = [objective(one, None) for one in alone]
    for stream in ("noisy", "clean"):
        assert float(getattr(whole, stream)) == pytest.approx(sum(float(getattr(part, stream)) for part in parts), rel=1e-4)


def test_growing_sizes_join_one_by_one_in_equal_parts_of_a_run():
    growing = replace(SPEC, grow_steps=9)
    assert [growing.at(step).block_sizes for step in range(10)] == [(4,)] * 3 + [(4, 8)] * 3 + [(4, 8, 16)] * 4
    assert growing.at(0).drawn("one", 3) == 4 and SPEC.at(0) is SPEC


def read_settings(folder):
    return json.loads((folder / "config.json").read_text())["bard"]["block_size"]


def test_resuming_draws_the_same_sizes_again_and_the_run_ends_in_a_model_of_each(tiny_dataset, source_model, bard_home):
    method = PBMConfig(stages=(), noise=NoiseConfig(min_t=0.1)).method
    asked = (method, (4, 8), tiny_train(steps=4, checkpoint_every=2), tiny_dataset, source_model)
    spec, uniform = pbm_spec(*asked, "growing"), pbm_spec(*asked)
    assert (spec.name, uniform.name, spec.block_size) == ("pbm-b4-8-growing", "pbm-b4-8", 8) and spec.digest != uniform.digest
    run, taken = train(spec)
    whole = state_of(run.checkpoint(4))
    shutil.rmtree(run.checkpoint(4))
    _, rest = train(spec)
    assert rest == taken[2:] and same(whole, state_of(run.checkpoint(4)))
    checkpoint = checkpoint_ref(spec, source_model.uri, run.checkpoint(4))
    place = {"storage_config": StorageConfig(), "tracking": TrackingConfig(), "parent_run": ""}
    of_size = partial(consolidate.task_function, checkpoint=checkpoint, clean_attention="block", **place)
    models = [of_size(block_size=size) for size in (4, 8)]
    assert [model.name for model in models] == ["pbm-b4", "pbm-b8"] and models[0].key != models[1].key
    folders = [artifacts.fetch(model) for model in models]
    assert [read_settings(folder) for folder in folders] == [4, 8]
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1


@pytest.mark.parametrize("sizes", [[8], [8, 4], [4, 4, 8]])
def test_sizes_grow_and_are_several(sizes):
    with pytest.raises(ValueError, match="block_sizes are two or more, growing"):
        PBMConfig.model_validate({"stages": [{"block_sizes": sizes, "train": {"steps": 1}}]})


def test_growing_needs_sizes_to_draw_from():
    with pytest.raises(ValueError, match="draw: growing needs block_sizes"):
        PBMConfig.model_validate({"stages": [{"block_size": 8, "draw": "growing", "train": {"steps": 1}}]})


def test_stages_share_no_size():
    stages = [{"block_sizes": [4, 8], "train": {"steps": 1}}, {"block_size": 8, "train": {"steps": 1}}]
    with pytest.raises(ValueError, match=r"growing block sizes, got \[4, 8, 8\]"):
        PBMConfig.model_validate({"stages": stages})
