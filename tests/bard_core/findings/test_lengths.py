"""Answers by their length: every class has its own numbers, and a world of one class has none."""

from typing import Any

import pytest

from bard_core.findings.lengths import by_length, table


def judgement(answers: list[int], timed: list[int], ratios: list[float]) -> dict[str, Any]:
    count = len(answers)
    samples = {"right": [i % 2 for i in range(count)], "real_tokens": answers, "forwards": [-(-n // 4) for n in answers]}
    return {"answers": answers, "timed": timed, "points": {"0.9": {"samples": samples, "speed": {"ratios": ratios}}}}


def test_each_class_has_its_own_numbers() -> None:
    found = by_length(judgement([2, 4, 5, 40, 64, 65, 200], [0, 3, 4], [1.0, 3.0, 5.0]))["0.9"]
    assert [*found] == ["1 to 4", "5 to 16", "17 to 64", "65 and more"]
    assert found["1 to 4"] == {"accuracy": 0.5, "tokens_per_forward": 3.0, "speedup": 1.0}
    assert found["5 to 16"]["speedup"] is None and found["17 to 64"]["speedup"] == 4.0
    assert found["65 and more"]["tokens_per_forward"] == pytest.approx(265 / 67)


def test_answers_of_one_class_are_not_divided() -> None:
    assert by_length(judgement([33, 41, 36], [0], [2.0])) == {}


def test_the_table_has_means_over_seeds_and_says_what_was_not_timed() -> None:
    seeds = [by_length(judgement([2, 30, 31], [1], [ratio])) for ratio in (2.0, 4.0)]
    judged = {"judged": {"pbm-b4": {}}}
    body = {"variants": {"elastic": {"seeds": {str(i): {**judged, "lengths": {"pbm-b4": one}} for i, one in enumerate(seeds)}}}}
    *_, row, _ = table(body)
    assert row == "| elastic | pbm-b4 | 0.9 | 0.0 %, 2.00 | 50.0 %, 3.81, 3.00x |"
    assert not [*table({"variants": {"elastic": {"seeds": {"0": {**judged, "lengths": {"pbm-b4": {}}}}}}})]
