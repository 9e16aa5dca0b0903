"""The engine against a decoder without a cache, and against itself."""

from typing import Any

import pytest
import torch

from bard_core.decoding import BlockEvent, DoneEvent, StepEvent, generate, stream
from bard_core.decoding.policies import make_policy
from bard_core.decoding.sampling import propose
from bard_core.diffusion.layout import CLEAN, NOISY, TokenTable, attention_mask

MASK, EOS = 510, 509  # of the tiny golden model

OPTIONS: list[dict[str, Any]] = [
    {"strategy": "static", "denoising_steps": 3},
    {"strategy": "dynamic", "confidence_threshold": 0.4},
    {"strategy": "dynamic", "confidence_threshold": 0.4, "schedule": "paper"},
    {"strategy": "entropy", "entropy_bound": 1.5},
    {"strategy": "factor", "factor": 1.5, "clean_attention": "causal"},
    {"strategy": "dynamic", "confidence_threshold": 0.3, "revision_threshold": 0.2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_batched_is_one_by_one(options: dict[str, Any], model: Any, mixed: Any) -> None:
    batch, single = mixed
    common = {"block_size": 8, "max_new_tokens": 20, "mask_token_id": MASK, "eos_token_id": 314} | options
    together = generate(model, batch, **common)
    alone = [generate(model, row, **common) for row in single]
    for index, one in enumerate(alone):
        length = one.stats.rows[0].real_tokens
        assert together.stats.rows[index].real_tokens == length
        assert together.sequences[index, :length].tolist() == one.sequences[0].tolist()
        assert together.stats.steps_per_block[index] == one.stats.steps_per_block[0]
        assert together.stats.rows[index].forwards == one.stats.rows[0].forwards
    assert (together.sequences != MASK).all()
    assert together.stats.batch_forwards >= max(row.forwards for row in together.stats.rows)
    assert together.stats.real_tokens == sum(one.stats.real_tokens for one in alone)


@torch.inference_mode()
def without_cache(model: Any, ids_1L: torch.Tensor, n: int, blocks: int, threshold: float, clean_attention: Any) -> list[int]:
    """Decode by full forwards under the one mask rule, nothing remembered."""
    policy = make_policy("dynamic", n, n, threshold, 0.0, 1.0)
    clean, prompt = ids_1L, ids_1L.shape[1]
    for _ in range(blocks):
        noisy, step = torch.full((1, n), MASK), 0
        length = clean.shape[1]
        position = torch.arange(length + n)
        prefix = -(-prompt // n)
        block = torch.where(position < prompt, position // n, prefix + (position - prompt) // n)
        table = TokenTable(torch.zeros_like(position), position, block, torch.where(position < length, CLEAN, NOISY))
        mask = attention_mask(table, table, clean_attention)[None, None]
        while (noisy == MASK).any():
            logits = model(input_ids=torch.cat([clean, noisy], 1), attention_mask=mask, position_ids=position[None]).logits
            proposal = propose(logits[:, -n:].float(), MASK)
            noisy = torch.where(policy(proposal, noisy == MASK, step), proposal.tokens, noisy)
            step += 1
        clean = torch.cat([clean, noisy], 1)
    return clean[0, prompt:].tolist()


@pytest.mark.parametrize("clean_attention", ["block", "causal"])
@pytest.mark.parametrize("schedule", ["paper", "fused"])
def test_cache_is_full_forward(clean_attention: str, schedule: str, model: Any, prompts: Any) -> None:
    ids = prompts["text"]["input_ids"]
    out = generate(
        model, {"input_ids": ids}, block_size=6, confidence_threshold=0.3, max_new_tokens=18,
        mask_token_id=MASK, schedule=schedule, clean_attention=clean_attention,
    )  # fmt: skip
    assert out.sequences[0].tolist() == without_cache(model, ids, 6, 3, 0.3, clean_attention)


def test_end_token_ends_a_row(model: Any, prompts: Any) -> None:
    options: dict[str, Any] = {
        "block_size": 8,
        "strategy": "static",
        "denoising_steps": 4,
        "max_new_tokens": 24,
        "mask_token_id": MASK,
    }
    free = generate(model, prompts["text"], **options).sequences[0].tolist()
    eos = free[9]
    cut = free.index(eos) + 1
    for schedule in ("paper", "fused"):
        out = generate(model, prompts["text"], eos_token_id=[eos], pad_token_id=7, schedule=schedule, **options)
        assert out.sequences[0].tolist() == free[:cut]
        assert out.stats.real_tokens == cut
        assert len(out.stats.steps_per_block[0]) == -(-cut // 8)
        assert out.stats.tokens_per_forward == cut / out.stats.forwards
    assert out.stats.forwards <= 4 * -(-cut // 8)


@pytest.mark.parametrize("new_tokens", [1, 5, 11])
def test_max_new_tokens_is_exact(new_tokens: int, model: Any, prompts: Any) -> None:
    options: dict[str, Any] = {"block_size": 8, "confidence_threshold": 0.5, "mask_token_id": MASK, "eos_token_id": EOS}
    long = generate(model, prompts["image"], max_new_tokens=16, **options)
    short = generate(model, prompts["image"], max_new_tokens=new_tokens, **options)
    assert short.sequences[0].tolist() == long.sequences[0, :new_tokens].tolist()
    assert short.stats.real_tokens == new_tokens


def test_empty_prompt(model: Any, prompts: Any) -> None:
    options: dict[str, Any] = {"block_size": 4, "max_new_tokens": 8, "mask_token_id": MASK, "confidence_threshold": 0.5}
    alone = generate(model, {"input_ids": torch.zeros(1, 0, dtype=torch.long)}, **options)
    image = prompts["image"]
    width = image["input_ids"].shape[1]
    batch = image | {
        "input_ids": torch.cat([image["input_ids"], torch.zeros(1, width, dtype=torch.long)]),
        "attention_mask": torch.tensor([[1] * width, [0] * width]),
    }
    together = generate(model, batch, **options)
    assert together.sequences[1].tolist() == alone.sequences[0].tolist()
    assert together.sequences[0].tolist() == generate(model, image, **options).sequences[0].tolist()


def test_stream_tells_the_same_story(model: Any, mixed: Any) -> None:
    options: dict[str, Any] = {
        "block_size": 8, "max_new_tokens": 20, "mask_token_id": MASK, "eos_token_id": 314, "confidence_threshold": 0.4,
        "revision_threshold": 0.2,
    }  # fmt: skip
    told: list[list[int]] = [[], [], []]
    filled: dict[tuple[int, int], torch.Tensor] = {}
    for event in stream(model, mixed[0], **options):
        if isinstance(event, StepEvent):
            for index, row in enumerate(event.rows):
                held = filled.setdefault((event.block, row), torch.zeros(8, dtype=torch.bool))
                if event.revised is not None:
                    assert (held | ~event.revised[index]).all(), "only filled positions are revised"
                    held &= ~event.revised[index]
                assert not (held & event.filled[index]).any(), "a held position is not filled again"
                held |= event.filled[index]
                assert ((event.tokens[index] == MASK) == ~held).all()
        elif isinstance(event, BlockEvent):
            for row, tokens in zip(event.rows, event.tokens, strict=True):
                told[row] += tokens
    assert isinstance(event, DoneEvent)
    for row, stats in enumerate(event.output.stats.rows):
        assert told[row] == event.output.sequences[row, : stats.real_tokens].tolist()


def test_seed_decides_the_sample(model: Any, prompts: Any) -> None:
    def sample(seed: int) -> list[int]:
        out = generate(
            model,
            prompts["text"],
            block_size=8,
            max_new_tokens=16,
            temperature=1.5,
            top_k=50,
            top_p=0.9,
            seed=seed,
            mask_token_id=MASK,
        )
        return out.sequences[0].tolist()  # type: ignore[no-any-return]

    assert sample(3) == sample(3) != sample(4)


def test_model_is_left_as_found(model: Any, prompts: Any) -> None:
    before = model.config.text_config._attn_implementation
    steps = stream(model, prompts["image"], block_size=4, max_new_tokens=8, mask_token_id=MASK)
    next(iter(steps))
    assert model.config.text_config._attn_implementation == before


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 0},
        {"denoising_steps": 9},
        {"denoising_steps": 0},
        {"strategy": "random"},
        {"schedule": "fast"},
        {"confidence_threshold": 0.0},
        {"entropy_bound": -1.0},
        {"factor": 0.0},
        {"revision_threshold": 2.0},
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"mask_token_id": None},
        {"mask_token_id": 10**6},
        {"clean_attention": "full"},
        {"strategy": "self_speculative"},
    ],
    ids=str,
)
def test_invalid_options_are_named(options: dict[str, Any], model: Any, prompts: Any) -> None:
    good = {"block_size": 8, "mask_token_id": MASK}
    name = "clean_attention" if options.get("strategy") == "self_speculative" else next(iter(options))
    with pytest.raises(ValueError, match=name):
        stream(model, prompts["text"], **(good | options))


@pytest.mark.parametrize(
    "inputs", [{}, {"input_ids": torch.zeros(3)}, {"input_ids": torch.ones(1, 3), "attention_mask": torch.ones(1, 4)}]
)
def test_invalid_inputs_are_named(inputs: dict[str, Any], model: Any) -> None:
    with pytest.raises(ValueError, match="input_ids"):
        generate(model, inputs, block_size=4, mask_token_id=MASK)
