"""A rank's micro-batches: the same for any number of loader processes, from any step on, whoever made them."""

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.source import LabModelConfig
from bard_core.data.batch import Batch, Supervision
from bard_core.data.batches import BatchSpec
from bard_core.data.examples import Positions, attach_positions
from bard_core.data.feed import MicroBatches, Walk, steps
from bard_core.data.pictures import decode, scale
from bard_core.data.reader import Reader
from bard_core.diffusion.layout import TokenTable
from bard_core.lab.model import build_lab_model
from bard_core.store import artifacts


@pytest.fixture(scope="module")
def processor(lab_dataset):
    return AutoProcessor.from_pretrained(artifacts.fetch(lab_dataset, part="processor/") / "processor")


@pytest.fixture(scope="module")
def model(processor):
    tiny = LabModelConfig(
        hidden_size=32, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate_size=32, vision_hidden_size=16, vision_heads=1
    )
    return build_lab_model(tiny, processor, 128, seed=0)


@pytest.fixture(scope="module")
def batches(lab_dataset, processor, model):
    walk = Walk(Reader(lab_dataset, "train"), 0, Positions(model.config))
    spec = BatchSpec(4, NoiseConfig(), 5, 6, 0, torch.arange(10, 200), max_tokens_per_row=512)
    return MicroBatches(walk, spec, batch_size=6, parts=2, rank=0, world=1, image_processor=processor.image_processor)


def same(one, other):
    for name in Batch.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), name
        elif isinstance(a, TokenTable | Supervision):
            assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True)), name
        else:
            assert a == b, name


def tensors(value):
    return [v for v in (getattr(value, name) for name in value.__dataclass_fields__) if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_change_nothing_from_any_step_on(batches, workers):
    for first, last in ((0, 4), (2, 4)) if workers else ((2, 4),):
        loaded = list(steps(batches, first, last, workers, pin=False))
        assert [len(parts) for parts in loaded] == [2] * (last - first)
        for number, batch in zip(itertools.count(2 * first), itertools.chain(*loaded), strict=False):
            same(batch, batches[number])


def test_ranks_and_micro_batches_share_a_step_and_nothing_is_left_out(batches):
    whole = {}
    for world, parts in ((1, 1), (2, 1), (3, 2)):
        taken = [
            replace(batches, rank=rank, world=world, parts=parts)[5 * parts + part]
            for rank in range(world)
            for part in range(parts)
        ]
        names = {place: name for batch in taken for place, name in zip(batch.places, batch.sample_ids, strict=True)}
        assert sorted(names) == list(range(30, 36))
        noise = {}
        for batch in taken:
            for i, name in enumerate(batch.sample_ids):
                at = batch.noisy.index_P[batch.noisy.sample_P == i]
                noise[name] = batch.input_ids_BL.flatten()[at].tolist(), batch.noisy.target_P[batch.noisy.sample_P == i].tolist()
        whole.setdefault("first", (names, noise))
        assert (names, noise) == whole["first"]


def test_the_last_steps_may_have_another_noise(batches):
    noise = NoiseConfig(then={"name": "uniform", "after": 0.5})
    phased = replace(batches, spec=replace(batches.spec, noise=noise), steps=5)
    same(phased[3], batches[3])  # of step 1
    for number in (4, 9):  # of steps 2 and 4
        later = phased[number]
        assert later.noise == "uniform"
        same(replace(later, noise=None), replace(batches, spec=replace(batches.spec, noise=NoiseConfig(name="uniform")))[number])


def test_what_is_known_of_a_sample_is_the_models_and_the_processors(batches, processor, model):
    walk = pickle.loads(pickle.dumps(batches)).walk
    for place in range(12):
        example, _ = walk[place]
        positions = example.position_ids_CN
        attach_positions([example], model)
        assert torch.equal(positions, example.position_ids_CN)
    text = walk.positions(torch.arange(20, 30), [])
    assert torch.equal(text, torch.arange(10).expand(3, 10))


def test_decoding_and_scaling_are_the_processors(processor):
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    images, pictures = [], []
    for size in ((50, 70), (64, 64), (200, 90)):
        pictures.append(Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)))
        file = io.BytesIO()
        pictures[-1].save(file, format="PNG")
        images.append(file.getvalue())
    for mean, std in (([0.5] * 3, [0.5] * 3), ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])):
        whole = pickle.loads(pickle.dumps(processor.image_processor))
        whole.image_mean, whole.image_std = mean, std
        out = whole(images=pictures, return_tensors="pt")
        patches = decode(whole, images, out["image_grid_thw"].tolist())
        assert patches.dtype == torch.uint8 and torch.equal(scale(whole, patches), out["pixel_values"])
    with pytest.raises(ValueError, match="pixel limits changed since"):
        decode(whole, images, [[1, 2, 2]] * 3)
