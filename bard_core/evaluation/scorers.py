"""Named scorers of an own benchmark: an answer against the allowed ones, from 0 to 1.

exact: the same words. relaxed: a number within 5 per cent, else the same words (ChartQA). anls: one minus the edit distance over
the longer length, 0 below a half (DocVQA). choice: the same letter of a multiple choice.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

Scorer = Literal["exact", "relaxed", "anls", "choice"]


def score(scorer: Scorer, given: str, answers: Sequence[str]) -> float:
    """The best score over the allowed answers."""
    return max(_SCORERS[scorer](given, answer) for answer in answers)


def _words(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _exact(given: str, answer: str) -> float:
    return float(_words(given) == _words(answer))


def _relaxed(given: str, answer: str) -> float:
    try:
        value, wanted = (float(re.sub(r"[,%$€£\s]", "", text)) for text in (given, answer))
    except ValueError:
        return _exact(given, answer)
    return float(abs(value - wanted) <= 0.05 * abs(wanted))


def _anls(given: str, answer: str) -> float:
    one, other = _words(given), _words(answer)
    longest = max(len(one), len(other), 1)
    likeness = 1.0 - _distance(one, other) / longest
    return likeness if likeness >= 0.5 else 0.0


def _distance(one: str, other: str) -> int:
    """Levenshtein's."""
    row = list(range(len(other) + 1))
    for index, letter in enumerate(one, start=1):
        before, row[0] = row[0], index
        for at, different in enumerate((letter != wanted for wanted in other), start=1):
            before, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, before + different)
    return row[-1]


def _choice(given: str, answer: str) -> float:
    found = re.search(r"\(?\b([A-Za-z])\b\)?", given)
    return float(found is not None and found[1].upper() == answer.strip().strip("()").upper()[:1])


_SCORERS: dict[str, Callable[[str, str], float]] = {"exact": _exact, "relaxed": _relaxed, "anls": _anls, "choice": _choice}
assert set(_SCORERS) == set(get_args(Scorer))
