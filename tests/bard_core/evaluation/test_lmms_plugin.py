"""Our model inside lmms-eval: it is found, sees the prompts it was trained on, and its answers are scored and counted right."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from lmms_eval.models.registry_v2 import ModelRegistryV2

from bard_core.artifacts import DatasetRef, ModelRef
from bard_core.decoding import GenerationOutput, GenerationStats, RowStats
from bard_core.evaluation.lmms_plugin import BardChat, _metrics, manifest, score
from bard_core.evaluation.suites import Suite, prepare_suite


@pytest.fixture
def rows(dataset: DatasetRef) -> list[dict[str, Any]]:
    return [row for shard in sorted((Path(dataset.uri) / "eval").glob("*.parquet")) for row in pq.read_table(shard).to_pylist()]


@pytest.fixture
def suite(dataset: DatasetRef, tmp_path: Path) -> Suite:
    return prepare_suite("lab", Path(dataset.uri), dataset.key, tmp_path / "suite")


class Oracle(BardChat):
    """Gives the answers it is told, as if in two forwards each."""

    def __init__(self, pretrained: str, texts: list[str], **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.texts, self.seen = list(texts), []

    def decode(self, inputs: dict[str, torch.Tensor]) -> GenerationOutput:
        self.seen += [ids[keep.bool()].tolist() for ids, keep in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        count = len(inputs["input_ids"])
        told, self.texts = self.texts[:count], self.texts[count:]
        tokens = self.processor.tokenizer(told, padding=True, padding_side="right", return_tensors="pt", add_special_tokens=False)
        stats = tuple(RowStats(int(length), 2) for length in tokens["attention_mask"].sum(1))
        return GenerationOutput(tokens["input_ids"], GenerationStats(stats, 2, 0.0, 0.0, 0.0))


def test_lmms_eval_finds_the_model_by_name() -> None:
    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert registry.get_model_class("bard") is BardChat
    declared = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert declared["project"]["entry-points"]["lmms_eval.models"] == {"bard": f"{manifest.__module__}:{manifest.__name__}"}


def test_answers_are_scored_and_the_prompts_are_those_of_training(
    make_model: Callable[..., ModelRef], suite: Suite, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    texts = [row["answer"] for row in rows]
    texts[0] = "  " + texts[0].replace(" ", "  ")  # spaces do not count
    fields = texts[1].split()
    texts[1] = " ".join(["?", *fields[1:]])  # one field wrong
    texts[2] = ""
    chat = Oracle(make_model(tmp_path / "model", 4).uri, texts, batch_size=3)

    scores = score(chat, suite.task_folder, suite.task, limit=None)

    count = len(rows)
    assert scores.metrics["exact"] == pytest.approx((count - 2) / count)
    assert scores.metrics["fields"] == pytest.approx((count - 2 + (len(fields) - 1) / len(fields)) / count)
    assert [type(value) for value in scores.metrics.values()] == [float, float]
    assert [record["id"] for record in scores.records] == [row["id"] for row in rows]
    assert [record["reference"] for record in scores.records] == [row["answer"] for row in rows]
    assert [record["exact"] for record in scores.records] == [1.0, 0.0, 0.0] + [1.0] * (count - 3)
    assert {record["forwards"] for record in scores.records} == {2}
    assert json.loads(json.dumps(scores.records)) == scores.records
    assert chat.seen == [row["input_ids"][: row["turns"][-1][0]] for row in rows]


def test_the_batch_size_changes_no_answer(make_model: Callable[..., ModelRef], suite: Suite, tmp_path: Path) -> None:
    uri = make_model(tmp_path / "model", 4).uri
    runs = [
        score(BardChat(uri, batch_size=size, max_new_tokens=10), suite.task_folder, suite.task, limit=5).records
        for size in (1, 4)
    ]
    assert len(runs[0]) == 5
    assert runs[0] == runs[1]


def test_speed_prompts_are_spread_over_the_suite(
    make_model: Callable[..., ModelRef], suite: Suite, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    chat = Oracle(make_model(tmp_path / "model", 4).uri, [row["answer"] for row in rows], batch_size=8)
    score(chat, suite.task_folder, suite.task, limit=None)
    assert [prompt["input_ids"][0].tolist() for prompt in chat.some_prompts(2)] == [chat.seen[0], chat.seen[len(rows) // 2]]
    assert len(chat.some_prompts(100)) == len(rows)


def test_a_metric_without_a_number_is_an_error() -> None:
    assert _metrics("t", {"alias": "t", "exact,none": 0.5, "exact_stderr,none": "N/A"}) == {"exact": 0.5}
    with pytest.raises(RuntimeError, match=r"task 't' gave 'N/A' for exact"):
        _metrics("t", {"exact,none": "N/A"})


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'block' or 'ar'"):
        BardChat("anywhere", mode="fast")
