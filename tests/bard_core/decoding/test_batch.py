"""Rows that join and leave a batch on its way."""

from typing import Any

import pytest

from bard_core.decoding import BlockEvent, generate
from bard_core.decoding.batch import Decode
from bard_core.decoding.prompt import read_prompt
from bard_core.decoding.settings import resolve

from .test_engine import EOS, MASK, OPTIONS


@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_rows_that_join_and_leave_between_blocks_say_what_they_say_alone(options: dict[str, Any], model: Any, mixed: Any) -> None:
    """A longer prompt joins a shorter one and the other way round, a third comes later, and one is sent away in the midst."""
    common = {"block_size": 4, "mask_token_id": MASK, "eos_token_id": EOS} | options
    lengths = (23, 11, 16)
    asked = list(zip(mixed[1], lengths, strict=True))
    alone = [generate(model, row, max_new_tokens=cap, **common).sequences[0].tolist() for row, cap in asked]
    decodes = [Decode(model, read_prompt(model, row), resolve(model, max_new_tokens=cap, **common)) for row, cap in asked]
    said: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def advance(decode: Decode, added: int = 0) -> None:
        for event in decode.advance():
            if isinstance(event, BlockEvent):
                for name, tokens in zip(event.rows, event.tokens, strict=True):
                    said[name + added] += tokens

    running, second, third = decodes
    advance(running)
    advance(running)
    advance(second, 1)
    assert running.admit(second) == 1
    advance(running)
    advance(third, 2)
    assert running.admit(third) == 2 and len(running.rows) == 3
    advance(running)
    gone = len(said[1])
    running.retire([1])
    while running.rows:
        advance(running)
    assert (said[0], said[2]) == (alone[0], alone[2])
    assert said[1] == alone[1][:gone]


def test_who_cannot_join_is_refused(model: Any, prompts: Any) -> None:
    def fresh(**options: Any) -> Decode:
        common = {"block_size": 4, "mask_token_id": MASK, "max_new_tokens": 9, **options}
        return Decode(model, read_prompt(model, prompts["text"]), resolve(model, **common))

    with pytest.raises(ValueError, match="behind their first block"):
        fresh().admit(fresh())
    sampling = [fresh(temperature=1.0) for _ in range(2)]
    for decode in sampling:
        list(decode.advance())
    with pytest.raises(ValueError, match="neither sample"):
        sampling[0].admit(sampling[1])
