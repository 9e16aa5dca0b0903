"""Noise statistics against their closed forms; bounds; replay."""

import math

import pytest
import torch

from bard_core.diffusion.noise import complement, corrupt, generator_for, mix_probabilities, replacement_tokens, stratified_t

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


def test_a_power_moves_t_within_its_bounds_and_leaves_strata_equally_likely():
    drawn = [stratified_t(8, 0.2, 0.8, generator_for(0, "a", 0), power).sort().values for power in (1.0, 0.5, 3.0)]
    shares = [(t - 0.2) / 0.6 for t in drawn]
    assert torch.allclose(shares[1], shares[0].sqrt()) and torch.allclose(shares[2], shares[0] ** 3)
    assert all(t.min() >= 0.2 and t.max() <= 0.8 for t in drawn)


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


def test_a_replacement_is_uniform_over_the_others():
    """The token itself is never drawn, and no neighbour of it inherits its share."""
    words = torch.arange(10, 15)
    targets = words[torch.arange(40_000) % 5]
    out = corrupt(
        targets, torch.zeros_like(targets), name="uniform", min_t=0.999, max_t=1.0, mask_token_id=MASK, replacements_W=words,
        generator=generator_for(0, "u", 0),
    )  # fmt: skip
    step = (out.noisy_R - targets) % 5
    shares = torch.bincount(step[out.noisy_R != targets], minlength=5) / (out.noisy_R != targets).sum()
    assert torch.allclose(shares, torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25]), atol=0.01)


def test_tokens_that_may_not_be_drawn_are_replaced_all_the_same():
    """A special token in the answer (its end) is noise's victim but never its draw."""
    targets = torch.full((4000,), 5)  # below every word
    _, _, out = noisy("uniform")
    assert torch.isin(out.noisy_R, WORDS).all()
    beyond = corrupt(
        targets, torch.zeros_like(targets), name="uniform", min_t=0.5, max_t=0.51, mask_token_id=MASK, replacements_W=WORDS,
        generator=generator_for(0, "b", 0),
    )  # fmt: skip
    drawn = beyond.noisy_R[beyond.noisy_R != 5]
    assert torch.isin(drawn, WORDS).all() and len(drawn) / 4000 == pytest.approx(0.505, abs=0.03)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.6, 0.95])
def test_mix_follows_its_schedule(t):
    targets, _, out = noisy("mix", min_t=t - 0.01, max_t=t + 0.01)
    p_mask, p_uniform, p_clean = (float(p) for p in mix_probabilities(torch.tensor(t)))
    angle = t * math.pi / 2
    assert (p_mask, p_clean) == (pytest.approx(1 - math.cos(angle), abs=1e-6), pytest.approx(1 - math.sin(angle), abs=1e-6))
    assert p_uniform == pytest.approx(math.sin(angle) + math.cos(angle) - 1, abs=1e-6)
    masked, kept = out.noisy_R == MASK, out.noisy_R == targets
    assert float(masked.float().mean()) == pytest.approx(p_mask, abs=0.01)
    assert float(kept.float().mean()) == pytest.approx(p_clean, abs=0.01)
    assert float((~masked & ~kept).float().mean()) == pytest.approx(p_uniform, abs=0.01)


@pytest.mark.parametrize(("t", "share"), [(0.0, 0.05), (0.5, 0.125), (1.0, 0.20)])
def test_edits_follow_their_shares(t, share):
    """In one long block of distinct tokens every edit shows: a gap, a stranger between neighbours, or one in a place."""
    length = 40_000
    targets, strangers = torch.arange(1000, 1000 + length), torch.arange(10, 500)
    low, high = max(t - 0.001, 0.0), min(t + 0.001, 1.0)
    noise = corrupt(
        targets, torch.zeros_like(targets), name="edit", min_t=low, max_t=high, mask_token_id=MASK, replacements_W=strangers,
        generator=generator_for(0, "e", 0),
    )  # fmt: skip
    noisy_tokens = noise.noisy_R[: length - 1000]  # the end is filled up or cut off
    kept = noisy_tokens[noisy_tokens >= 1000] - 1000
    reached = int(kept.max()) + 1  # how many of the targets these places stand for
    lost, drawn = reached - len(kept), int((noisy_tokens < 1000).sum())
    # deleted + substituted are lost, inserted + substituted are drawn: 4/5 of the share each
    assert lost / reached == pytest.approx(0.8 * share, abs=0.006)
    assert drawn / reached == pytest.approx(0.8 * share, abs=0.006)
    together = (noisy_tokens[1:] >= 1000) & (noisy_tokens[:-1] >= 1000)
    gaps = (noisy_tokens[1:] - noisy_tokens[:-1] - 1)[together]
    # deletions seen alone: m of them in a row between a kept token and one that nothing was done to
    deleted = share / 5
    assert int(gaps.sum()) / reached == pytest.approx((1 - 4 * deleted) * (1 - share) * deleted / (1 - deleted) ** 2, abs=0.004)


def test_bounds_hold_for_every_number_of_blocks():
    for blocks in range(1, 40):
        t = stratified_t(blocks, 0.1, 0.5, generator_for(0, "b", blocks))
        assert t.min() >= 0.1 and t.max() <= 0.5


def test_special_tokens_are_never_among_the_replacements():
    assert replacement_tokens(6, [0, 4, 99]).tolist() == [1, 2, 3, 5]
    with pytest.raises(ValueError, match="may be drawn"):
        replacement_tokens(3, [0, 1])


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
