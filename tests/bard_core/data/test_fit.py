"""Rows are limits: samples lose whole turns at their end, never a part of one; what does not fit at all is told."""

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor, Qwen3VLConfig

from bard_core.config.sections.noise import NoiseConfig
from bard_core.data.batches import BatchSpec, collate, noisy_copies
from bard_core.data.examples import Example, Positions
from bard_core.data.feed import MicroBatches, Walk
from bard_core.data.fit import Fitted, RowsTooShortError, check_rows, laid_out_length, turns_that_fit
from bard_core.data.reader import Reader

from ..written import row, write_dataset


@pytest.fixture(scope="module")
def reader(lab_dataset: Any) -> Reader:
    return Reader(lab_dataset, "train")


@pytest.fixture(scope="module")
def examples(reader: Reader) -> list[Example]:
    return [reader[i] for i in range(len(reader))]


@pytest.fixture(scope="module")
def processor(lab_dataset: Any) -> Any:
    return AutoProcessor.from_pretrained(Path(lab_dataset.uri) / "processor")


def spec(block_size: int | None, complementary: bool, limit: int) -> BatchSpec:
    noise = NoiseConfig(complementary=complementary)
    return BatchSpec(block_size, noise, 1, 2, 0, torch.arange(3, 9), max_tokens_per_row=limit)


def placed(example: Example) -> tuple[Example, int]:
    return replace(example, position_ids_CN=torch.arange(len(example.input_ids_N)).repeat(3, 1)), 0


@pytest.mark.parametrize(("block_size", "complementary"), [(None, False), (4, False), (32, False), (8, True)])
def test_the_length_is_that_of_the_layout(examples: list[Example], block_size: int | None, complementary: bool) -> None:
    copies = noisy_copies(block_size, NoiseConfig(complementary=complementary))
    for example in examples[:6]:
        batch = collate([placed(example)], spec(block_size, complementary, 10_000))
        assert batch.input_ids_BL.shape[1] == laid_out_length(len(example.input_ids_N), example.turns, block_size, copies)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60)), min_size=1, max_size=20),
    st.sampled_from([None, 1, 4, 32]),
    st.integers(0, 2),
    st.integers(16, 1500),
    st.booleans(),
)
def test_as_many_turns_stay_as_fit(
    gaps: list[tuple[int, int]], block_size: int | None, copies: int, limit: int, last: bool
) -> None:
    turns, at = [], 0
    for asked, answered in gaps:
        turns.append((at + asked, at + asked + answered))
        at += asked + answered
    context = len(turns) - 1 if last else 0

    def length(kept: int, end: int) -> int:
        return laid_out_length(end, turns[kept - 1 if last else 0 : kept], block_size, copies)

    kept = turns_that_fit(at + 1, turns, block_size, copies, limit, context)
    if kept < len(turns):
        assert length(len(turns), at + 1) > limit
        assert kept == 0 or length(kept, turns[kept - 1][1]) <= limit
        assert all(length(n, turns[n - 1][1]) > limit for n in range(kept + 1, len(turns) + 1))


def fit(reader: Reader, processor: Any, block_size: int, limit: int) -> Fitted:
    return Fitted(reader, block_size, 1, limit, processor.image_token_id, processor.image_processor.merge_size)


def test_every_row_keeps_the_limit_and_images_stay_with_their_tokens(
    reader: Reader, examples: list[Example], processor: Any
) -> None:
    lengths = sorted(laid_out_length(len(e.input_ids_N), e.turns, 8, 1) for e in examples)
    limit = lengths[len(lengths) // 2]
    fitted = fit(reader, processor, 8, limit)
    assert "are too long for rows" in fitted.told and fit(reader, processor, 8, lengths[-1]).told == ""
    whole = {example.id: example for example in examples}
    left = [fitted[i] for i in range(len(fitted))]
    assert any(len(e.turns) < len(whole[e.id].turns) for e in left)
    assert [e.id for e in left] == [str(reader.index.table["id"][int(at)]) for at in fitted.samples]
    for example in left:
        assert example.turns == whole[example.id].turns[: len(example.turns)]
        assert torch.equal(example.input_ids_N, whole[example.id].input_ids_N[: len(example.input_ids_N)])
        visual = sum(math.prod(grid) for grid in example.grid_thw) // processor.image_processor.merge_size**2
        assert visual == int((example.input_ids_N == processor.image_token_id).sum())
        assert len(example.images) == len(example.grid_thw)
    again = pickle.loads(pickle.dumps(fitted))
    assert torch.equal(again[0].input_ids_N, left[0].input_ids_N) and len(again) == len(fitted)
    batch = collate([placed(example) for example in left], spec(8, False, limit))
    assert batch.input_ids_BL.shape[1] <= limit


def test_the_last_turn_that_stays_is_learned(tmp_path: Path, processor: Any) -> None:
    turns = [[4, 10], [14, 20], [24, 30]]
    data = write_dataset(tmp_path / "data", [[row("a", 40, turns, context=2), row("b", 12, turns[:1])]])
    cut, whole = fit(Reader(data, "train"), processor, 4, 30)
    assert (cut.turns, cut.context, len(cut.input_ids_N)) == ([(4, 10), (14, 20)], 1, 20)
    assert (whole.turns, whole.context) == ([(4, 10)], 0)


def test_steps_keep_the_limit_too(reader: Reader, examples: list[Example], processor: Any) -> None:
    lengths = sorted(laid_out_length(len(e.input_ids_N), e.turns, 8, 1) for e in examples)
    limit = lengths[len(lengths) // 2]
    config = Qwen3VLConfig(image_token_id=processor.image_token_id)
    walk = Walk(fit(reader, processor, 8, limit), 0, Positions(config))
    batches = MicroBatches(walk, spec(8, False, limit), 4, 1, 0, 1)
    for number in range(6):
        assert batches[number].input_ids_BL.shape[1] <= limit


def test_rows_too_short_for_every_sample_are_refused(
    reader: Reader, examples: list[Example], processor: Any, faults: Any
) -> None:
    shortest = min(laid_out_length(e.turns[0][1], e.turns[:1], 4, 1) for e in examples)
    check_rows(reader, 4, 1, shortest)  # what the message says to set
    assert len(fit(reader, processor, 4, shortest)) > 0
    for refuse in (lambda: check_rows(reader, 4, 1, shortest - 1), lambda: fit(reader, processor, 4, shortest - 1)):
        with pytest.raises(RowsTooShortError, match=f"max_tokens_per_row is {shortest - 1}.*at least {shortest}"):
            refuse()
    faults.survived("rows too short for every sample", "refused in one line", times=2)
