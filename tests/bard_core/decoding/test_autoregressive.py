"""The baseline counts honestly, and self-speculative decoding yields exactly its tokens."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from bard_core.decoding import BlockEvent, generate, generate_autoregressive, stream

MASK, EOS = 510, 509  # of the tiny golden model


def test_counts_real_tokens(model: Any, prompts: Any) -> None:
    free = generate_autoregressive(model, prompts["image"], max_new_tokens=12, eos_token_id=EOS)
    assert free.stats.tokens_per_forward == 1.0 and free.stats.forwards == free.stats.real_tokens == 12
    eos = free.sequences[0, 5].item()
    cut = free.sequences[0].tolist().index(eos) + 1
    ended = generate_autoregressive(model, prompts["image"], max_new_tokens=12, eos_token_id=eos)
    assert ended.sequences[0].tolist() == free.sequences[0, :cut].tolist()
    assert ended.stats.real_tokens == cut
    assert 0 < ended.stats.prefill_s == ended.stats.time_to_first_token_s


def test_greedy_whatever_the_generation_config_says(model: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2.5-VL, say, ships a repetition penalty: ``generate`` would apply it to the baseline, and no block decoder does."""
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": EOS, "mask_token_id": MASK}
    plain = generate_autoregressive(model, prompts["text"], **options)
    shipped = GenerationConfig(repetition_penalty=1.5, no_repeat_ngram_size=1, forced_eos_token_id=5, pad_token_id=9)
    monkeypatch.setattr(model, "generation_config", shipped)
    greedy = generate_autoregressive(model, prompts["text"], **options)
    drafted = generate(model, prompts["text"], block_size=4, strategy="self_speculative", clean_attention="causal", **options)
    assert torch.equal(greedy.sequences, plain.sequences) and torch.equal(drafted.sequences, plain.sequences)
    assert len(set(plain.sequences[0].tolist())) < 12  # or nothing would have been penalised
    assert model.generation_config is shipped


def test_batched_is_one_by_one(model: Any, mixed: Any) -> None:
    batch, single = mixed
    together = generate_autoregressive(model, batch, max_new_tokens=10, eos_token_id=EOS)
    for index, row in enumerate(single):
        alone = generate_autoregressive(model, row, max_new_tokens=10, eos_token_id=EOS)
        assert together.sequences[index, : alone.stats.real_tokens].tolist() == alone.sequences[0].tolist()


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_self_speculative_is_greedy_autoregression(block_size: int, model: Any, mixed: Any) -> None:
    batch, single = mixed
    options: dict[str, Any] = {"max_new_tokens": 21, "eos_token_id": 314, "mask_token_id": MASK}
    drafted = generate(model, batch, block_size=block_size, strategy="self_speculative", clean_attention="causal", **options)
    for index, row in enumerate(single):
        greedy = generate_autoregressive(model, row, **options)
        length = greedy.stats.real_tokens
        assert drafted.stats.rows[index].real_tokens == length
        assert drafted.sequences[index, :length].tolist() == greedy.sequences[0].tolist()
        assert 0 < drafted.stats.rows[index].forwards <= 1 + 2 * length
        alone = generate(model, row, block_size=block_size, strategy="self_speculative", clean_attention="causal", **options)
        assert drafted.stats.rows[index] == alone.stats.rows[0]  # a row is charged what it took, not what the batch took
    assert drafted.stats.batch_forwards < drafted.stats.forwards


def test_drafts_that_are_right_in_part_are_taken_in_part(model: Any, mixed: Any) -> None:
    """Both modes lean towards one token, so that a draft is often right for some tokens and then wrong."""

    def leaning(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 7.0 * torch.nn.functional.one_hot(torch.tensor(5), output.shape[-1])

    options: dict[str, Any] = {"max_new_tokens": 40, "eos_token_id": [], "mask_token_id": MASK}
    hook = model.lm_head.register_forward_hook(leaning)
    try:
        events = list(stream(model, mixed[0], block_size=6, strategy="self_speculative", clean_attention="causal", **options))
        greedy = generate_autoregressive(model, mixed[0], **options)
    finally:
        hook.remove()
    taken = {len(tokens) for event in events if isinstance(event, BlockEvent) for tokens in event.tokens}
    assert taken & {2, 3, 4, 5}
    assert torch.equal(events[-1].output.sequences, greedy.sequences)


def test_agreeing_modes_cost_one_forward_a_block(model: Any, prompts: Any) -> None:
    """Both modes say token 5 everywhere: after prefill and one draft, each forward commits a whole block."""

    def always_five(*call: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full(call[2].shape[:2], 5), call[2].shape[-1]).float()

    hook = model.lm_head.register_forward_hook(always_five)
    events = list(
        stream(
            model, prompts["text"], block_size=4, max_new_tokens=16, strategy="self_speculative",
            clean_attention="causal", mask_token_id=MASK, eos_token_id=EOS,
        )
    )  # fmt: skip
    hook.remove()
    assert [e.tokens for e in events if isinstance(e, BlockEvent)] == [((5, 5, 5, 5),)] * 4
    assert events[-1].output.stats.forwards == 1 + 1 + 4


def test_invalid_calls_are_named(model: Any, prompts: Any) -> None:
    empty = {"input_ids": torch.zeros(1, 0, dtype=torch.long)}
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate_autoregressive(model, prompts["text"], max_new_tokens=0)
    with pytest.raises(ValueError, match="input_ids"):
        generate_autoregressive(model, empty)
    with pytest.raises(ValueError, match="input_ids"):
        stream(model, empty, block_size=4, strategy="self_speculative", clean_attention="causal", mask_token_id=MASK)
