"""What a task asks of generation: honoured or refused, never ignored."""

from typing import Any

import pytest

from bard_core.evaluation import gen_kwargs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"visual_cot": True}, r"visual_cot=True is unknown here; known are max_new_tokens"),
        ({"image_aspect_ratio": "pad"}, r"image_aspect_ratio='pad' is not supported: leave it out or write original"),
        ({"num_beams": 4}, r"num_beams=4 is not supported: leave it out or write 1"),
        ({"repetition_penalty": 1.2}, r"repetition_penalty=1.2 is not supported"),
        ({"temperature": 0.7, "do_sample": False}, r"temperature=0.7 is above 0 but do_sample is false"),
        ({"temperature": 0.0, "do_sample": True}, r"do_sample=True needs a temperature above 0"),
        ({"max_new_tokens": 0}, r"max_new_tokens=0 must be at least 1"),
        ({"until": ["", "x"]}, r"until=\['', 'x'\] must be a string or a list"),
    ],
)
def test_what_cannot_be_honoured_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(gen_kwargs.GenerationKwargsError, match=message):
        gen_kwargs.read(given, "block")


def test_usual_kwargs_are_read() -> None:
    usual = {"max_new_tokens": 16, "temperature": 0.0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": None}
    assert gen_kwargs.read(usual, "ar") == gen_kwargs.Asked(16)
    assert gen_kwargs.read({"do_sample": True}, "block").sampling == {"temperature": 1.0, "seed": 0}
    assert gen_kwargs.read({"temperature": 0.5, "top_p": 0.9, "top_k": 0, "seed": 3}, "block").sampling == {
        "temperature": 0.5, "top_p": 0.9, "seed": 3,
    }  # fmt: skip
