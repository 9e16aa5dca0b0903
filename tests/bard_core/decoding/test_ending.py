"""Where responses end: end tokens, stop strings and the cap; the same for every decoder."""

from typing import Any

import pytest
import torch

from bard_core.decoding import generate, generate_autoregressive
from bard_core.decoding.ending import Ending

MASK = 510  # of the tiny golden model


class Letters:
    """A tokenizer whose token i reads as its letter."""

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(chr(0x100 + token) for token in tokens)


def text_of(tokens: list[int]) -> str:
    return Letters().decode(tokens)


@pytest.mark.parametrize(
    ("so_far", "new", "kept", "ends"),
    [
        ([], [1, 2, 3], [1, 2, 3], False),
        ([], [1, 9, 3], [1, 9], True),  # an end token
        ([], [9], [9], True),
        ([1, 2, 3], [4, 5, 6], [4, 5], True),  # the cap
        ([1, 2, 3], [4, 9, 6], [4, 9], True),  # both at once
        ([1], [2, 7, 8, 3], [2, 7, 8], True),  # a stop string
        ([1, 7], [8, 2], [8], True),  # one that began before
        ([1], [9, 7, 8], [9], True),  # the end token comes first
        ([1, 2], [3, 7], [3, 7], False),  # half a stop string
    ],
)
def test_cut(so_far: list[int], new: list[int], kept: list[int], ends: bool) -> None:
    ending = Ending((9,), 5, (text_of([7, 8]),), Letters().decode)
    assert ending.cut(so_far, new) == (kept, ends)


STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "static", "denoising_steps": 3},
    {"strategy": "dynamic", "confidence_threshold": 0.4, "revision_threshold": 0.2},
    {"strategy": "entropy", "entropy_bound": 1.5},
    {"strategy": "factor", "schedule": "paper"},
    {"strategy": "self_speculative", "clean_attention": "causal"},
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s["strategy"])
def test_stop_strings_cut_every_row_where_they_are_complete(strategy: dict[str, Any], model: Any, mixed: Any) -> None:
    options: dict[str, Any] = {"block_size": 8, "max_new_tokens": 20, "mask_token_id": MASK, "eos_token_id": [], **strategy}
    free = [row.tolist() for row in generate(model, mixed[0], **options).sequences]
    stop = text_of(free[0][6:9])  # three tokens of the first row, over the border of its first block
    out = generate(model, mixed[0], stop_strings=[stop, "nowhere"], tokenizer=Letters(), **options)
    for row, unstopped in enumerate(free):
        at = text_of(unstopped).find(stop)
        length = len(unstopped) if at < 0 else at + 3
        assert out.stats.rows[row].real_tokens == length
        assert out.sequences[row, :length].tolist() == unstopped[:length]
    assert out.stats.rows[0].real_tokens <= 9 and out.stats.rows[0].forwards > 0


def test_stop_strings_of_the_baseline(model: Any, mixed: Any) -> None:
    free = [row.tolist() for row in generate_autoregressive(model, mixed[0], max_new_tokens=12, eos_token_id=[]).sequences]
    stop = text_of(free[1][3:5])
    out = generate_autoregressive(model, mixed[0], max_new_tokens=12, eos_token_id=[], stop_strings=(stop,), tokenizer=Letters())
    for row, unstopped in enumerate(free):
        at = text_of(unstopped).find(stop)
        length = len(unstopped) if at < 0 else at + 2
        assert out.stats.rows[row].real_tokens == length
        assert out.sequences[row, :length].tolist() == unstopped[:length]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s["strategy"])
@pytest.mark.parametrize("schedule", ["paper", "fused"])
def test_a_single_token_answer(strategy: dict[str, Any], schedule: str, model: Any, mixed: Any) -> None:
    """Both modes say the end token everywhere: one token, whatever was asked for."""

    def always_end(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return 20 * torch.nn.functional.one_hot(torch.full(output.shape[:2], 7), output.shape[-1]).float()

    hook = model.lm_head.register_forward_hook(always_end)
    try:
        options = {"schedule": schedule} | strategy | {"block_size": 8, "mask_token_id": MASK, "eos_token_id": 7}
        for inputs in mixed:
            for prompt in inputs if isinstance(inputs, list) else [inputs]:
                out = generate(model, prompt, max_new_tokens=64, **options)
                assert (out.sequences == 7).all() and out.sequences.shape[1] == 1
                assert all(row.real_tokens == 1 and 0 < row.forwards <= 9 for row in out.stats.rows)
    finally:
        hook.remove()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s["strategy"])
def test_an_answer_that_never_ends_ends_at_the_cap(strategy: dict[str, Any], model: Any, prompts: Any) -> None:
    options = {"block_size": 4, "mask_token_id": MASK, "eos_token_id": []} | strategy
    out = generate(model, prompts["text"], max_new_tokens=50, **options)
    assert out.stats.real_tokens == out.sequences.shape[1] == 50
    assert 50 / 4 <= out.stats.forwards <= 2 * 50 + 4


@pytest.mark.parametrize("stops", ["ab", ["a", ""], [3], 5, iter("a")], ids=["text", "empty", "number", "one", "used up"])
def test_invalid_stop_strings_are_named(stops: Any, model: Any, prompts: Any) -> None:
    with pytest.raises(ValueError, match="stop_strings"):
        generate(model, prompts["text"], block_size=4, mask_token_id=MASK, stop_strings=stops, tokenizer=Letters())
    with pytest.raises(ValueError, match="tokenizer"):
        generate_autoregressive(model, prompts["text"], stop_strings=["a"])
