"""The compiled body decodes what the eager one does, from two compiled forwards a shape, in buffers that no two decodes share."""

import shutil
from collections.abc import Iterator
from copy import deepcopy
from itertools import zip_longest
from typing import Any

import pytest
import torch

from bard_core.decoding import DoneEvent, generate, stream
from bard_core.decoding.body import Body
from bard_core.decoding.cache import new_cache
from bard_core.decoding.compiled import SMALLEST_PROMPT, CompiledBody
from bard_core.decoding.prompt import read_prompt

MASK, EOS = 510, 314  # of the tiny golden model; EOS is a token it likes to emit
OPTIONS: dict[str, Any] = {"block_size": 8, "max_new_tokens": 20, "mask_token_id": MASK, "eos_token_id": EOS}
POLICIES: list[dict[str, Any]] = [
    {"strategy": "static", "denoising_steps": 3},
    {"strategy": "dynamic", "confidence_threshold": 0.4, "schedule": "paper"},
    {"strategy": "dynamic", "confidence_threshold": 0.3, "revision_threshold": 0.2},
    {"strategy": "entropy", "entropy_bound": 1.5},
    {"strategy": "factor", "factor": 1.5, "clean_attention": "causal"},
    {"strategy": "static", "denoising_steps": 4, "temperature": 0.8, "top_k": 20, "seed": 3},
]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


@pytest.fixture(scope="module", autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_every_policy_decodes_as_without_it_from_two_graphs(model: Any, mixed: Any) -> None:
    """Unequal prompts, rows that end in different blocks, a fused and a plain forward: the same two graphs for all of it."""
    before, ended = graphs(), set()
    for policy in POLICIES:
        plain = generate(model, mixed[0], **OPTIONS, **policy)
        compiled = generate(model, mixed[0], compiled=True, **OPTIONS, **policy)
        assert torch.equal(compiled.sequences, plain.sequences)
        assert compiled.stats.rows == plain.stats.rows and compiled.stats.batch_forwards == plain.stats.batch_forwards
        ended |= {len(row.steps_per_block) for row in plain.stats.rows}
    assert len(ended) > 1  # or no row would have stayed behind in the buffer
    assert graphs() - before == 2


def test_self_speculation_and_rows_of_other_lengths_share_graphs(model: Any, mixed: Any) -> None:
    """One row a decode: what the rows need rounds up to one capacity, so both modes take the same two graphs."""
    before = graphs()
    for policy in ({"strategy": "self_speculative", "clean_attention": "causal"}, POLICIES[0]):
        for prompt in mixed[1]:
            plain = generate(model, prompt, **OPTIONS, **policy)
            compiled = generate(model, prompt, compiled=True, **OPTIONS, **policy)
            assert torch.equal(compiled.sequences, plain.sequences) and compiled.stats.rows == plain.stats.rows
    assert graphs() - before == 2


def test_an_empty_prompt(model: Any) -> None:
    """Nothing has allocated the buffers before the first block, all of whose positions say the same, so none must lead."""
    prompt = {"input_ids": torch.zeros(1, 0, dtype=torch.long)}
    options: dict[str, Any] = {**OPTIONS, "strategy": "dynamic", "confidence_threshold": 0.001, "max_new_tokens": 24}
    for _ in range(2):  # the second decode finds the buffers of the first
        plain, compiled = (generate(model, prompt, compiled=on, **options) for on in (False, True))
        assert torch.equal(compiled.sequences, plain.sequences)


@pytest.mark.parametrize("clean_attention", ["block", "causal"])
@torch.inference_mode()
def test_hidden_states_are_the_eager_ones(clean_attention: Any, model: Any, mixed: Any) -> None:
    """Call by call: a draft that is forgotten, a fused one, a commit, and what is left after a row of the three went."""
    prompt = read_prompt(model, mixed[0])
    width, n = prompt.input_ids_BL.shape[1], 4
    bodies = Body(model, new_cache(model, width + 20), clean_attention), CompiledBody(model, 3, width, 20, clean_attention)
    pads = prompt.pads
    for body in bodies:
        body.prefill(prompt, n)
        body.look_past(pads)
    tokens = torch.randint(0, 480, (3, 2 * n), generator=torch.Generator().manual_seed(1))
    positions = prompt.next_position_B[:, None] + torch.arange(2 * n)
    for kept, queries, clean, forget in ((None, n, 0, n), (None, 2 * n, n, n), ([0, 2], n, n, 0), ([1], 2 * n, n, 0)):
        if kept is not None:
            pads, tokens, positions = [pads[i] for i in kept], tokens[kept], positions[kept] + n
            for body in bodies:
                body.keep_rows(kept, pads)
        eager, compiled = (body(tokens[:, :queries], positions[:, :queries], clean) for body in bodies)
        assert compiled.shape == eager.shape and torch.allclose(compiled, eager, atol=1e-5)
        for body in bodies:
            body.cache.crop(-forget)


def test_streams_at_one_time_have_buffers_of_their_own(model: Any, prompts: Any) -> None:
    """Two decodes step by step in turn, and a third begun after one was given up half-way."""
    options: dict[str, Any] = {**OPTIONS, **POLICIES[0], "eos_token_id": [], "compiled": True}
    alone = {name: generate(model, prompts[name], **options).sequences for name in ("text", "image")}
    one, other = stream(model, prompts["text"], **options), stream(model, prompts["image"], **options)
    in_turn = [event for pair in zip_longest(one, other) for event in pair]
    one_done, other_done = [event.output.sequences for event in in_turn if isinstance(event, DoneEvent)]
    assert {tuple(done.flatten().tolist()) for done in (one_done, other_done)} == {
        tuple(sequence.flatten().tolist()) for sequence in alone.values()
    }
    given_up = stream(model, prompts["image"], **options)
    next(given_up)
    given_up.close()  # type: ignore[attr-defined]
    assert torch.equal(generate(model, prompts["text"], **options).sequences, alone["text"])


def test_the_buffers_of_the_last_decode_are_used_again(model: Any) -> None:
    def borrow(prompt: int) -> CompiledBody:
        return CompiledBody(model, 1, prompt, 16, "block")

    with torch.inference_mode():
        first = borrow(5)
        first.cache.update(torch.ones(1, 2, 5, 16), torch.ones(1, 2, 5, 16), 0)
        cache = first.cache
        first.close()
        again, besides = borrow(SMALLEST_PROMPT), borrow(5)
        assert again.cache is cache and besides.cache is not cache
        assert again.cache.length == 0 and not again.cache.layers[0].keys.any()
        again.close()
        assert borrow(SMALLEST_PROMPT + 1).cache is not cache  # another capacity
        cache.update(torch.ones(1, 2, 5, 16), torch.ones(1, 2, 5, 16), 0)
    again.close()  # as the collector does
    assert not cache.layers[0].keys.any()


@torch.inference_mode()
def test_a_converted_model_gets_new_buffers(model: Any, prompts: Any) -> None:
    converted = deepcopy(model)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        prompt = read_prompt(converted.to(dtype), prompts["text"])
        body = CompiledBody(converted, 1, prompt.input_ids_BL.shape[1], 8, "block")
        assert body.prefill(prompt, 4).dtype == dtype
        assert body.cache.layers[0].keys.dtype == dtype
        body.close()


def test_buffers_of_a_prefill_that_failed(model: Any, prompts: Any) -> None:
    """Only some layers have theirs then; a prompt that is empty finds them so."""
    options: dict[str, Any] = {**OPTIONS, "confidence_threshold": 0.001, "max_new_tokens": 24, "compiled": True}
    empty = {"input_ids": torch.zeros(1, 0, dtype=torch.long)}
    expected = generate(model, empty, **options).sequences
    new = deepcopy(model)

    def fail(*_: Any) -> None:
        raise MemoryError

    hook = new.get_decoder().layers[1].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        generate(new, prompts["text"], **options)
    hook.remove()
    assert torch.equal(generate(new, empty, **options).sequences, expected)
