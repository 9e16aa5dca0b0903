"""The engine against a decoder without a cache, and against itself."""

from copy import deepcopy
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
def without_cache(model: Any, ids_1L: torch.Tensor, n: int, blocks: int, options: dict[str, Any], clean: Any) -> list[int]:
    """Decode by full forwards under the one mask rule, nothing remembered."""
    policy = make_policy(
        options["strategy"], n, options.get("denoising_steps", n), options.get("confidence_threshold", 0.9),
        options.get("entropy_bound", 0.5), options.get("factor", 1.0),
    )  # fmt: skip
    below = options.get("revision_threshold")
    known, prompt = ids_1L, ids_1L.shape[1]
    for _ in range(blocks):
        noisy, step = torch.full((1, n), MASK), 0
        revisable = torch.ones(1, n, dtype=torch.bool)
        length = known.shape[1]
        position = torch.arange(length + n)
        prefix = -(-prompt // n)
        block = torch.where(position < prompt, position // n, prefix + (position - prompt) // n)
        table = TokenTable(torch.zeros_like(position), position, block, torch.where(position < length, CLEAN, NOISY))
        mask = attention_mask(table, table, clean)[None, None]
        while (noisy == MASK).any():
            logits = model(input_ids=torch.cat([known, noisy], 1), attention_mask=mask, position_ids=position[None]).logits
            proposal = propose(logits[:, -n:].float(), MASK, held=noisy, with_entropy=True)
            held = noisy
            if below is not None:
                assert proposal.current is not None
                weak = (noisy != MASK) & revisable & (proposal.current < below)
                revisable, held = revisable & ~weak, noisy.masked_fill(weak, MASK)
            noisy = torch.where(policy(proposal, held == MASK, step), proposal.tokens, held)
            step += 1
        known = torch.cat([known, noisy], 1)
    return known[0, prompt:].tolist()


EVERY_POLICY: list[dict[str, Any]] = [
    {"strategy": "static", "denoising_steps": 3},
    {"strategy": "dynamic", "confidence_threshold": 0.3},
    {"strategy": "dynamic", "confidence_threshold": 0.3, "revision_threshold": 0.25},
    {"strategy": "entropy", "entropy_bound": 2.0},
    {"strategy": "factor", "factor": 2.0},
]


@pytest.mark.parametrize("clean_attention", ["block", "causal"])
@pytest.mark.parametrize("options", EVERY_POLICY, ids=str)
def test_cache_is_full_forward(options: dict[str, Any], clean_attention: str, model: Any, prompts: Any) -> None:
    ids = prompts["text"]["input_ids"]
    settings = {"block_size": 6, "max_new_tokens": 18, "mask_token_id": MASK, "eos_token_id": []}
    expected = without_cache(model, ids, 6, 3, options, clean_attention)
    forwards = {}
    for schedule in ("paper", "fused"):
        out = generate(model, {"input_ids": ids}, schedule=schedule, clean_attention=clean_attention, **settings, **options)
        assert out.sequences[0].tolist() == expected
        forwards[schedule] = out.stats.forwards
    assert forwards["paper"] == forwards["fused"] + 3  # one commit a block


def test_revision_takes_tokens_back(model: Any, prompts: Any) -> None:
    """Or the case above would prove nothing of it."""
    options: dict[str, Any] = {"block_size": 6, "max_new_tokens": 18, "mask_token_id": MASK, "eos_token_id": []}
    events = stream(model, prompts["text"], **options, **EVERY_POLICY[2])
    assert any(event.revised is not None and event.revised.any() for event in events if isinstance(event, StepEvent))


@pytest.mark.parametrize("options", EVERY_POLICY, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mask_token_is_never_emitted(options: dict[str, Any], temperature: float, model: Any, prompts: Any) -> None:
    """Not even by a model that wants it everywhere."""

    def wants_mask(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 30 * torch.nn.functional.one_hot(torch.tensor(MASK), output.shape[-1])

    hook = model.lm_head.register_forward_hook(wants_mask)
    try:
        out = generate(
            model, prompts["image"], block_size=4, max_new_tokens=10, mask_token_id=MASK, temperature=temperature, **options
        )
    finally:
        hook.remove()
    assert (out.sequences != MASK).all()


def test_wildly_unequal_prompts(model: Any, prompts: Any) -> None:
    """One token beside two hundred; rows end at different blocks, and padding that the rest shares is given up."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 480, (1, length), generator=generator) for length in (200, 1, 37)]
    ids = torch.cat([torch.nn.functional.pad(row, (200 - row.shape[1], 0)) for row in rows])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[0] * (200 - r.shape[1]) + [1] * r.shape[1] for r in rows])}
    options: dict[str, Any] = {"block_size": 4, "max_new_tokens": 40, "mask_token_id": MASK, "confidence_threshold": 0.3}
    free = [generate(model, {"input_ids": row}, eos_token_id=[], **options).sequences[0].tolist() for row in rows]
    ends = [free[0][2], free[1][17]]
    together = generate(model, batch, eos_token_id=ends, **options)
    for index, row in enumerate(free):
        length = next((i + 1 for i, token in enumerate(row) if token in ends), 40)
        assert together.stats.rows[index].real_tokens == length
        assert together.sequences[index, :length].tolist() == row[:length]
    assert together.stats.rows[0].real_tokens <= 3


@pytest.mark.parametrize("options", EVERY_POLICY, ids=str)
def test_one_wait_a_step(options: dict[str, Any], model: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host asks a step only who is still open and whether the logits are sound, and a block for its tokens."""
    waits: list[str] = []

    def counted(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def wrapper(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            waits.append(name)
            return original(self, *args, **kwargs)

        return wrapper

    settings: dict[str, Any] = {"block_size": 8, "max_new_tokens": 24, "mask_token_id": MASK, "eos_token_id": [EOS]}
    steps = stream(model, prompts["text"], **settings, **options)
    next(steps)  # the prefill, and the first step without its question
    for name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    rest = list(steps)
    monkeypatch.undo()
    assert isinstance(rest[-1], DoneEvent)
    stats = rest[-1].output.stats
    assert len(waits) == stats.batch_forwards + len(stats.steps_per_block[0])


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
    """Its own forward gives what it gave, in the middle of a decode too, and its config is saved as it was."""
    found, before = deepcopy(model), model(**prompts["text"]).logits
    steps = iter(stream(found, prompts["image"], block_size=4, max_new_tokens=8, mask_token_id=MASK))
    next(steps)
    assert torch.equal(found(**prompts["text"]).logits, before)
    assert found.config.to_json_string() == model.config.to_json_string()
