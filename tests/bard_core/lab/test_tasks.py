"""The harder questions have true answers, of one token to 200, and the pictures show what is asked about."""

import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from bard_core.config.sections.data import LabWorldConfig
from bard_core.lab import drawing, tasks, world
from bard_core.lab.drawing import Cells
from bard_core.lab.processor import build_lab_tokenizer

HARD = LabWorldConfig(
    rows=3, columns=3, alphabet=9, digits=5, min_cells=2, max_cells=4, turns_per_image=2, train_images=28, eval_images=14,
    tasks=("read", "count", "yesno", "sort", "add", "chart", "list"),
)  # fmt: skip
CELLS = [("K", 3), ("B", 1), ("M", 3), ("F", 0)]


def answers(task: str, asked: int = 500) -> dict[str, str]:
    two = HARD.model_copy(update={"rows": 2, "columns": 2})
    return dict(tasks.ask(task, CELLS, two, random.Random(seed)) for seed in range(asked))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("count", "Count 3.", "2"),
        ("count", "Count 2.", "0"),
        ("yesno", "Is B 1?", "yes"),
        ("yesno", "Is B 2?", "no"),
        ("chart", "Value of M?", "3"),
        ("list", "List 3.", "row 1 column 1: K=3; row 1 column 2: B=1; row 2 column 1: M=3"),
    ],
)
def test_answers_are_true(task: str, question: str, answer: str) -> None:
    assert answers(task)[question] == answer


def test_answers_about_several_cells_are_true() -> None:
    digits = dict(CELLS)
    for question, answer in {**answers("sort"), **answers("add"), **answers("read")}.items():
        verb, *named = question.removesuffix(".").split()
        assert 2 <= len(named) <= 4
        if verb == "Sort":
            assert sorted(named) == sorted(answer.split())
            assert [digits[letter] for letter in answer.split()] == sorted(digits[letter] for letter in named)
        elif verb == "Add":
            parts, total = answer.split("=")
            assert [int(part) for part in parts.split("+")] == [digits[letter] for letter in named]
            assert int(total) == sum(digits[letter] for letter in named)
        else:
            assert answer == " ".join(f"{letter}={digits[letter]}" for letter in named)


def test_conversations_have_one_or_two_turns_and_answers_of_one_token_to_two_hundred() -> None:
    tokenizer = build_lab_tokenizer()
    turns, lengths, sides = Counter[int](), list[int](), set[tuple[int, int]]()
    for index in range(70):
        png, asked = tasks.conversation(HARD, index, random.Random(index))
        turns[len(asked)] += 1
        lengths.append(len(tokenizer(asked[-1][1])["input_ids"]))
        sides.add(Image.open(io.BytesIO(png)).size)
        assert not any(question.startswith("List") for question, _ in asked[:-1])
    assert set(turns) == {1, 2} and min(turns.values()) > 15
    assert min(lengths) == 1 and 100 <= max(lengths) <= 200
    assert sides == {(96, 96)}, "charts are as large as grids, so that tokens do not tell them apart"


def test_a_share_of_the_training_images_is_for_practice() -> None:
    some = HARD.model_copy(update={"practice": 0.3, "train_images": 20})
    drawn = [schema for schema, _ in world.generate(some, "train", set(), set())]
    assert {schema: drawn.count(schema) for schema in drawn} == {"finevision": 14, "llava_onevision": 4, "mmfinereason": 2}
    assert {schema for schema, _ in world.generate(some, "eval", set(), set())} == {"finevision"}
    with pytest.raises(ValueError, match="practice needs tasks"):
        LabWorldConfig(practice=0.3)


def test_practice_is_about_charts_too_if_the_tasks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    charts: list[Cells] = []
    draw = drawing.chart

    def chart(bars: Cells, *rest: Any) -> bytes:
        charts.append(bars)
        return draw(bars, *rest)

    monkeypatch.setattr(drawing, "chart", chart)
    some = HARD.model_copy(update={"tasks": ("read", "chart"), "practice": 0.5, "train_images": 120})
    listings = [
        row["conversations"][1]["value"]
        for schema, row in world.generate(some, "train", set(), set())
        if schema == "llava_onevision"
    ]
    of_charts = [" ".join(f"{letter}={value}" for letter, value in sorted(bars)) for bars in charts]
    asked = [listing for listing in listings if listing.split("; ")[0] in of_charts]
    assert len(listings) / 5 < len(asked) < len(listings) / 2
    charts.clear()
    no_charts = some.model_copy(update={"tasks": ("read", "count")})
    assert list(world.generate(no_charts, "train", set(), set())) and not charts


def test_a_hard_world_is_written_as_finevision_and_held_out_questions_go_around_the_tasks(tmp_path: Path) -> None:
    sources = world.write_raw(HARD, tmp_path)
    assert [source.schema_name for source in sources["eval"]] == ["finevision"]
    rows = pq.read_table(sources["eval"][0].uri).to_pylist()
    asked = Counter(row["texts"][-1]["user"].split()[0] for row in rows)
    assert asked == dict.fromkeys(("Read", "Count", "Is", "Sort", "Add", "Value", "List"), 2)
    train = pq.read_table(sources["train"][0].uri).to_pylist()
    assert not {row["images"][0]["bytes"] for row in rows} & {row["images"][0]["bytes"] for row in train}


def test_a_chart_needs_room_for_its_letters() -> None:
    with pytest.raises(ValueError, match="chart needs rows >= 2"):
        LabWorldConfig(rows=1, columns=3, min_cells=1, max_cells=2, tasks=("chart",))
