"""Properties every policy must have, on random scores, and what each promises beyond them."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bard_core.decoding.policies import (
    Proposal,
    accept_dynamic,
    accept_entropy,
    accept_factor,
    accept_static,
    make_policy,
    quotas,
    revise,
)
from bard_core.decoding.sampling import propose

STRATEGIES = ("static", "dynamic", "entropy", "factor")


def scores(seed: int, rows: int, n: int) -> tuple[Proposal, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(rows, n, 11, generator=generator)
    masked = torch.rand(rows, n, generator=generator) < 0.6
    return propose(logits, 10, with_entropy=True), masked


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), rows=st.integers(1, 3), n=st.integers(1, 9), name=st.sampled_from(STRATEGIES), data=st.data())
def test_accepts_open_positions_and_always_one(seed: int, rows: int, n: int, name: str, data: st.DataObject) -> None:
    proposal, masked = scores(seed, rows, n)
    policy = make_policy(name, n, data.draw(st.integers(1, n)), data.draw(st.floats(0.05, 1.0)), data.draw(st.floats(0, 3)), 1.0)
    accepted = policy(proposal, masked, data.draw(st.integers(0, 2 * n)))
    assert not (accepted & ~masked).any()
    assert (accepted.any(1) == masked.any(1)).all()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), n=st.integers(1, 9))
def test_looser_settings_accept_more(seed: int, n: int) -> None:
    proposal, masked = scores(seed, 2, n)
    assert proposal.entropy is not None
    for low, high in itertools.pairwise((0.1, 0.4, 0.7, 1.0)):
        assert not (accept_dynamic(proposal.confidence, masked, high) & ~accept_dynamic(proposal.confidence, masked, low)).any()
        assert not (accept_entropy(proposal.entropy, masked, low) & ~accept_entropy(proposal.entropy, masked, high)).any()
        assert not (accept_factor(proposal.confidence, masked, low) & ~accept_factor(proposal.confidence, masked, high)).any()


@settings(deadline=None, max_examples=50)
@given(block=st.integers(1, 40), data=st.data())
def test_quotas_cover_the_block(block: int, data: st.DataObject) -> None:
    plan = quotas(block, data.draw(st.integers(1, block)))
    assert sum(plan) == block and max(plan) - min(plan) <= 1 and list(plan) == sorted(plan, reverse=True)


def test_each_rule_on_known_scores() -> None:
    confidence = torch.tensor([[0.99, 0.2, 0.95, 0.6]])
    masked = torch.tensor([[True, True, True, True]])
    assert accept_static(confidence, masked, 3).tolist() == [[True, False, True, True]]
    assert accept_dynamic(confidence, masked, 0.9).tolist() == [[True, False, True, False]]
    assert accept_dynamic(confidence, masked, 0.9, quota=3).tolist() == [[True, False, True, True]]
    # (n + 1)(1 - c_n): 0.02, 0.15, 1.6, 4.0
    assert accept_factor(confidence, masked, 1.0).tolist() == [[True, False, True, False]]
    assert accept_factor(confidence, masked, 2.0).tolist() == [[True, False, True, True]]
    # entropies before each, in order: 0, 0.1, 0.3, 0.8
    entropy = torch.tensor([[0.5, 0.1, 2.0, 0.2]])
    assert accept_entropy(entropy, masked, 0.3).tolist() == [[True, True, False, True]]
    assert accept_entropy(entropy, masked, 0.2).tolist() == [[False, True, False, True]]


def test_revision_reopens_weak_tokens_once() -> None:
    current = torch.tensor([[0.1, 0.1, 0.9, 0.1]])
    masked = torch.tensor([[False, True, False, False]])
    revisable = torch.tensor([[True, True, True, False]])
    assert revise(current, masked, revisable, 0.5).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_mask_token_is_never_proposed(temperature: float) -> None:
    logits = torch.zeros(2, 50, 5)
    logits[..., 3] = 50.0
    generators = [torch.Generator().manual_seed(row) for row in range(2)]
    assert (propose(logits, 3, temperature=temperature, generators=generators).tokens != 3).all()


def test_top_k_and_top_p_bound_the_sample() -> None:
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1])).expand(1, 4000, 4)
    mask_id = 3
    sample: dict[str, Any] = {"temperature": 1.0, "generators": [torch.Generator().manual_seed(0)]}
    drawn = propose(logits.clone(), mask_id, **sample)
    share = drawn.tokens.flatten().bincount(minlength=4) / 4000
    assert torch.allclose(share, torch.tensor([4, 3, 2, 0]) / 9, atol=0.03)
    assert set(propose(logits.clone(), mask_id, **sample, top_k=1).tokens.unique().tolist()) == {0}
    assert set(propose(logits.clone(), mask_id, **sample, top_p=0.5).tokens.unique().tolist()) == {0, 1}


def test_entropy_is_that_of_the_distribution() -> None:
    logits = torch.randn(1, 3, 7)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    got = propose(logits.clone(), 6, with_entropy=True).entropy
    assert got is not None and torch.allclose(got, expected, atol=1e-5)


def test_entropy_of_a_barred_token_is_none_of_its_own() -> None:
    logits = torch.randn(1, 3, 7)
    logits[..., 5] = -torch.inf
    expected = torch.distributions.Categorical(logits=logits[..., [0, 1, 2, 3, 4, 6]]).entropy()
    got = propose(logits.clone(), 6, with_entropy=True).entropy
    assert got is not None and torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_broken_logits_end_too(name: str) -> None:
    """A half-precision overflow must give a bad answer, not a decode that never ends."""
    proposal = propose(torch.full((1, 4, 11), torch.nan), 10, with_entropy=True)
    masked = torch.tensor([[False, True, False, True]])
    policy = make_policy(name, 4, 4, 0.9, 0.5, 1.0)
    for step in range(2):
        accepted = policy(proposal, masked, step)
        assert accepted.any() and not (accepted & ~masked).any()
        masked = masked & ~accepted
