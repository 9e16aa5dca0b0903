"""What is kept out of the logs is what is listed, and each of it is still said by the package that it names."""

import importlib.util
import logging
import re
from pathlib import Path

import pytest

from bard_core.known_warnings import KNOWN, Known, hush


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.logger)
def test_the_listed_message_goes_and_its_neighbours_stay(known: Known, caplog: pytest.LogCaptureFixture) -> None:
    hush()
    hush()
    logger = logging.getLogger(known.logger)
    assert len([one for one in logger.filters if getattr(one, "text", None) == re.compile(known.text)]) == 1
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        logger.warning(_example(known.text))
        logger.warning(f"something new: {_example(known.text)}")
    finally:
        logger.removeHandler(handler)
    assert seen == [f"something new: {_example(known.text)}"]


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.logger)
def test_no_entry_outlives_its_message(known: Known) -> None:
    spec = importlib.util.find_spec(known.logger)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert _example(known.text).split("`")[0].split("{")[0].strip() in re.sub(r'"\s*f?"', "", source)


def _example(text: str) -> str:
    """A message that the pattern stands for: the first of its alternatives, without escapes."""
    first = re.sub(r"\(((?:[^()\\]|\\.)*)\)", lambda match: match[1].split("|")[0], text)
    return first.replace("\\", "")
