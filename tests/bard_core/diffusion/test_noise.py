"""Noise statistics against their closed forms; bounds; replay."""

import math

import pytest
import torch

from bard_core.diffusion.noise import complement, corrupt, generator_for, mix_probabilities, stratified_t

MASK, WORDS = 999, torch.arange(10, 500)


def noisy(name, blocks=4000, size=8, **kwargs):
    targets = WORDS[torch.randint(len(WORDS), (blocks * size,), generator=generator_for(1, "targets", 0))]
    block = torch.arange(blocks).repeat_interleave(size)
    arguments = {
        "min_t": 0.1,
        "max_t": 0.9,
        "mask_token_id": MASK,
        "replacements_W": WORDS,
        "generator": generator_for(0, "s", 0),
    }
    return targets, block, corrupt(targets, block, name=name, **{**arguments, **kwargs})


def test_t_is_stratified_within_bounds():
    t = stratified_t(10, 0.2, 0.7, generator_for(0, "a", 0)).sort().values
    edges = torch.linspace(0.2, 0.7, 11)
    assert (t >= edges[:-1]).all() and (t <= edges[1:]).all()


def test_one_t_a_block():
    _, block, out = noisy("mask", blocks=50)
    assert all(out.t_R[block == b].unique().numel() == 1 for b in range(50))


def test_mask_rate_is_t():
    _, _, out = noisy("mask")
    assert float(out.loss_mask_R.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(out.noisy_R == MASK, out.loss_mask_R)
    light = out.t_R < 0.3
    assert float(out.loss_mask_R[light].float().mean()) == pytest.approx(0.2, abs=0.02)


def test_uniform_replaces_with_other_words():
    targets, _, out = noisy("uniform")
    changed = out.noisy_R != targets
    assert float(changed.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.isin(out.noisy_R, WORDS).all() and out.loss_mask_R.all()


def test_mix_follows_its_schedule():
    targets, _, out = noisy("mix", min_t=0.59, max_t=0.61)
    p_mask, p_uniform, p_clean = (float(p) for p in mix_probabilities(torch.tensor(0.6)))
    assert p_mask + p_uniform + p_clean == pytest.approx(1)
    assert p_mask == pytest.approx(1 - math.cos(0.3 * math.pi))
    assert float((out.noisy_R == MASK).float().mean()) == pytest.approx(p_mask, abs=0.01)
    assert float((out.noisy_R == targets).float().mean()) == pytest.approx(p_clean, abs=0.01)


def test_edits_stay_in_their_block():
    targets, block, out = noisy("edit", blocks=200)
    assert (out.noisy_R != targets).any()
    clean = torch.ones(200, dtype=torch.bool)
    clean[block[out.noisy_R != targets].unique()] = False
    assert clean.any()  # an untouched block proves that edits elsewhere did not shift it


def test_same_seed_same_noise_other_epoch_other_noise():
    targets, block = WORDS[:64], torch.arange(8).repeat_interleave(8)

    def draw(epoch):
        return corrupt(
            targets,
            block,
            name="mask",
            min_t=0.1,
            max_t=1.0,
            mask_token_id=MASK,
            replacements_W=WORDS,
            generator=generator_for(3, "x", epoch),
        ).noisy_R

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_complement_masks_the_rest():
    targets, _, out = noisy("mask", blocks=20)
    other = complement(out, targets, MASK)
    assert torch.equal(other.loss_mask_R, ~out.loss_mask_R)
    assert torch.equal(torch.where(out.loss_mask_R, other.noisy_R, out.noisy_R), targets)
