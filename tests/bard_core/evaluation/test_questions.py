"""An own benchmark from a JSONL file: judged end to end by a real lmms-eval, scored by name, refused by line."""

import json

import pytest
from PIL import Image

from bard_core.config.sections.evaluation import DecodingConfig, EvaluationConfig
from bard_core.evaluation import questions
from bard_core.evaluation.evaluate import evaluate
from bard_core.evaluation.questions import QuestionError, read_questions
from bard_core.evaluation.scorers import score
from bard_core.evaluation.suites import benchmark_digest, load_suite


@pytest.fixture
def suite(tmp_path):
    """A suite of one's own in a folder of one's own."""
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (64, 64), (60 * index, 0, 0)).save(tmp_path / "mine" / "pictures" / f"{index}.png")
    lines = [
        {"question": "Which colour?", "answers": ["red", "dark red"], "images": ["pictures/0.png", "pictures/1.png"]},
        {"id": "two", "question": "How many?", "answer": "12", "image": "pictures/2.png"},
        {"question": "Say nothing.", "answer": "x"},
    ]
    (tmp_path / "mine" / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    body = "description: Mine.\nversion: 1\nbenchmarks:\n  - {name: mine, questions: q.jsonl, scorer: anls}\n"
    (tmp_path / "mine" / "mine.yaml").write_text(body)
    return tmp_path / "mine" / "mine.yaml"


@pytest.mark.slow
def test_a_file_of_questions_is_judged_without_code(suite, dataset, make_model, bard_home, tmp_path):
    source, model = make_model(tmp_path / "source", 1), make_model(tmp_path / "pbm-b4", 4, seed=2)
    config = EvaluationConfig(suite=str(suite), decoding=DecodingConfig(max_new_tokens=8), batch_size=2, speed_samples=1)
    result = evaluate(model, source, dataset, config, str(tmp_path / "result"))
    (found,) = result.benchmarks
    records = [json.loads(line) for line in (tmp_path / "result" / "samples.jsonl").read_text().splitlines()]
    assert [(record["id"], record["reference"]) for record in records] == [("1", "red | dark red"), ("two", "12"), ("3", "x")]
    expected = [score("anls", record["text"], record["reference"].split(" | ")) for record in records]
    assert [record["score"] for record in records] == expected
    assert (found.name, found.num_samples, found.crashed) == ("mine", 3, 0)
    assert found.accuracy == pytest.approx(sum(expected) / 3)


def test_the_digest_is_of_what_is_asked_not_of_where_it_lies(suite, tmp_path):
    def digest(path):
        return benchmark_digest(load_suite(str(path)).benchmarks[0], "d")

    first = digest(suite)
    moved = suite.parent.rename(tmp_path / "elsewhere") / "mine.yaml"
    assert digest(moved) == first
    Image.new("RGB", (64, 64), (1, 2, 3)).save(moved.parent / "pictures" / "2.png")
    changed = digest(moved)
    moved.write_text(moved.read_text().replace("anls", "exact"))
    assert len({first, changed, digest(moved)}) == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "q.jsonl:1: "),
        ('{"question": "a"}', "q.jsonl:1: answers: Field required"),
        ('{"question": "a", "answer": "b", "img": "c"}', "q.jsonl:1: img: Extra inputs"),
        ('{"question": "a", "answer": "b", "image": "none.png"}', "q.jsonl:1: no image .*none.png"),
        ("", "no question in it"),
        ('{"id": "x", "question": "a", "answer": "b"}\n{"id": "x", "question": "a", "answer": "b"}', "an id stands there twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    (tmp_path / "q.jsonl").write_text(line + "\n")
    with pytest.raises(QuestionError, match=words):
        read_questions(tmp_path / "q.jsonl")
    assert questions.__doc__


@pytest.mark.parametrize(
    ("scorer", "given", "answers", "expected"),
    [
        ("exact", " Red\n", ["red"], 1.0),
        ("exact", "dark red", ["red", "Dark  red."], 1.0),
        ("exact", "blue", ["red"], 0.0),
        ("relaxed", "1,040", ["1000"], 1.0),
        ("relaxed", "1,060", ["1000"], 0.0),
        ("relaxed", "-95%", ["-100"], 1.0),
        ("relaxed", "Paris", ["paris"], 1.0),
        ("relaxed", "0.01", ["0"], 0.0),
        ("anls", "kitten", ["sitting"], 1 - 3 / 7),
        ("anls", "abc", ["xyz"], 0.0),
        ("anls", "", ["a"], 0.0),
        ("choice", "(B) because", ["B"], 1.0),
        ("choice", "b.", ["(B)"], 1.0),
        ("choice", "The answer", ["T"], 0.0),
        ("choice", "", ["A"], 0.0),
    ],
)
def test_scorers(scorer, given, answers, expected):
    assert score(scorer, given, answers) == pytest.approx(expected)
