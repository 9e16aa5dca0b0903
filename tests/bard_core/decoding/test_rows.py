"""Rows mind their own business: what one draws, where one ends and what one breaks is not another's, nor another thread's."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from bard_core.decoding import generate, generate_autoregressive

MASK, EOS = 510, 509  # of the tiny golden model
OPTIONS: dict[str, Any] = {"block_size": 8, "max_new_tokens": 20, "mask_token_id": MASK, "eos_token_id": 314}


@pytest.mark.parametrize("strategy", ["static", "dynamic"])
def test_a_row_draws_alone_what_it_draws_among_others(strategy: Any, model: Any, mixed: Any) -> None:
    """Rows of other lengths that take other numbers of steps; row r alone needs the seed that it has in the batch."""
    batch, single = mixed
    sampled: dict[str, Any] = {**OPTIONS, "strategy": strategy, "confidence_threshold": 0.4, "temperature": 0.7, "top_p": 0.95}
    together = generate(model, batch, seed=5, **sampled)
    for index, row in enumerate(single):
        alone = generate(model, row, seed=5 + index, **sampled)
        real = alone.stats.rows[0].real_tokens
        assert together.sequences[index, :real].tolist() == alone.sequences[0].tolist()
    assert len(set(together.stats.steps_per_block)) > 1 or strategy == "static"


def test_equal_prompts_in_a_batch_draw_differently(model: Any, prompts: Any) -> None:
    ids = prompts["text"]["input_ids"]
    out = generate(model, {"input_ids": torch.cat([ids, ids])}, temperature=1.5, **OPTIONS)
    assert out.sequences[0].tolist() != out.sequences[1].tolist()


WAYS: list[dict[str, Any]] = [
    {"strategy": "static"},
    {"strategy": "dynamic"},
    {"strategy": "entropy"},
    {"strategy": "factor", "schedule": "paper"},
    {"strategy": "dynamic", "temperature": 1.0},
    {"strategy": "self_speculative", "clean_attention": "causal"},
]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("way", [*WAYS, None], ids=str)
def test_logits_that_are_not_finite_name_their_row(way: dict[str, Any] | None, bad: float, model: Any, mixed: Any) -> None:
    def break_row(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        broken = output.clone()
        if len(broken) == 3:
            broken[1, -1, 7] = bad
        return broken

    hook = model.lm_head.register_forward_hook(break_row)
    try:
        with pytest.raises(FloatingPointError, match="row 1: "):
            if way is None:
                generate_autoregressive(model, mixed[0], max_new_tokens=4, eos_token_id=[])
            else:
                generate(model, mixed[0], **OPTIONS, **way)
    finally:
        hook.remove()


class _Letters:
    """Token t is the letter t mod 26."""

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(chr(97 + token % 26) for token in tokens)


def test_autoregression_stops_at_a_stop_string_without_an_end_token(model: Any, mixed: Any) -> None:
    """The other rows go on, and the one that stopped is cut there, as one that is decoded alone."""
    batch, single = mixed
    free = [generate_autoregressive(model, row, max_new_tokens=12, eos_token_id=[]).sequences[0].tolist() for row in single]
    stop = _Letters().decode(free[0][3:5])
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": [], "stop_strings": [stop], "tokenizer": _Letters()}
    together = generate_autoregressive(model, batch, **options)
    first = together.stats.rows[0].real_tokens
    assert first <= 5 and together.sequences.shape[1] == max(row.real_tokens for row in together.stats.rows) > first
    assert together.sequences[0, :first].tolist() == free[0][:first] and set(together.sequences[0, first:].tolist()) == {0}
    alone = generate_autoregressive(model, single[0], **options)
    assert alone.sequences[0].tolist() == free[0][:first]


def test_threads_share_a_model(model: Any, prompts: Any) -> None:
    """Two kinds of decoding on one model at once, many times over, give what each gives alone."""

    def blocks(name: str) -> list[int]:
        return generate(model, prompts[name], confidence_threshold=0.4, **OPTIONS).sequences[0].tolist()  # type: ignore[no-any-return]

    def one_by_one(name: str) -> list[int]:
        out = generate_autoregressive(model, prompts[name], max_new_tokens=12, eos_token_id=EOS)
        return out.sequences[0].tolist()  # type: ignore[no-any-return]

    work = [(decode, name) for decode in (blocks, one_by_one) for name in ("text", "image")] * 6
    expected = [decode(name) for decode, name in work[:4]] * 6
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda job: job[0](job[1]), work)) == expected
