"""Rows are limits: samples lose whole turns at their end, never a part of one; what does not fit at all is told."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from bard_core.config.sections import NoiseConfig
from bard_core.data.batches import BatchSpec, collate, noisy_copies
from bard_core.data.examples import Example, load_examples
from bard_core.data.rows import RowsTooShortError, check_rows, fit_to_rows, laid_out_length, turns_that_fit


@pytest.fixture(scope="module")
def examples(lab_dataset: Any) -> list[Example]:
    return load_examples(Path(lab_dataset.uri), "train")


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
)
def test_as_many_turns_stay_as_fit(gaps: list[tuple[int, int]], block_size: int | None, copies: int, limit: int) -> None:
    turns, at = [], 0
    for asked, answered in gaps:
        turns.append((at + asked, at + asked + answered))
        at += asked + answered
    kept = turns_that_fit(at + 1, turns, block_size, copies, limit)
    if kept < len(turns):
        assert laid_out_length(at + 1, turns, block_size, copies) > limit
        assert kept == 0 or laid_out_length(turns[kept - 1][1], turns[:kept], block_size, copies) <= limit
        assert laid_out_length(turns[kept][1], turns[: kept + 1], block_size, copies) > limit


def test_every_row_keeps_the_limit_and_images_stay_with_their_tokens(
    examples: list[Example], processor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lengths = sorted(laid_out_length(len(e.input_ids_N), e.turns, 8, 1) for e in examples)
    limit = lengths[len(lengths) // 2]
    with caplog.at_level(logging.WARNING):
        fitted = fit_to_rows(examples, 8, 1, limit, processor)
    assert "are too long for rows" in caplog.text
    whole = {example.id: example for example in examples}
    assert any(len(e.turns) < len(whole[e.id].turns) for e in fitted)
    for example in fitted:
        assert example.turns == whole[example.id].turns[: len(example.turns)]
        assert torch.equal(example.input_ids_N, whole[example.id].input_ids_N[: len(example.input_ids_N)])
        visual = sum(math.prod(grid) for grid in example.grid_thw) // processor.image_processor.merge_size**2
        assert visual == int((example.input_ids_N == processor.image_token_id).sum()) and len(example.images) == len(
            example.grid_thw
        )
    batch = collate([placed(example) for example in fitted], spec(8, False, limit))
    assert batch.input_ids_BL.shape[1] <= limit
    with pytest.raises(ValueError, match=r"takes .* tokens laid out, a row"):
        collate([placed(example) for example in examples], spec(8, False, limit))


def test_rows_too_short_for_every_sample_are_refused_by_lengths_alone(
    lab_dataset: Any, examples: list[Example], processor: Any, faults: Any
) -> None:
    folder = Path(lab_dataset.uri)
    shortest = min(laid_out_length(e.turns[0][1], e.turns[:1], 4, 1) for e in examples)
    check_rows(folder, 4, 1, shortest)
    for refuse in (lambda: check_rows(folder, 4, 1, shortest - 1), lambda: fit_to_rows(examples, 4, 1, shortest - 1, processor)):
        with pytest.raises(RowsTooShortError, match=f"max_tokens_per_row is {shortest - 1}.*at least {shortest}"):
            refuse()
    faults.survived("rows too short for every sample", "refused in one line", times=2)
