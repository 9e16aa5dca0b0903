"""Our model inside lmms-eval: it is found, sees the prompts it was trained on, and its answers are scored and counted right."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmms_eval.models.registry_v2 import ModelRegistryV2
from PIL import Image

from bard_core.data.heldout import COLUMNS
from bard_core.data.reader import Reader
from bard_core.decoding import GenerationOutput, GenerationStats, RowStats
from bard_core.evaluation.answers import prompt_digest
from bard_core.evaluation.lmms_plugin import BardChat, manifest
from bard_core.evaluation.lmms_score import Scores, _metrics, check_prompt, load_task, sample_score, score
from bard_core.evaluation.suites import Benchmark, SuiteError, load_suite, prepare_task
from bard_core.store.refs import DatasetRef, ModelRef

LAB = load_suite("lab").benchmarks[0]


@pytest.fixture
def rows(dataset: DatasetRef) -> list[dict[str, Any]]:
    reader = Reader(dataset, "eval")
    rows = [reader.row(i, (*COLUMNS, "input_ids", "turns")) for i in range(len(reader))]
    return [{name: value.as_py() for name, value in row.items()} for row in rows]


@pytest.fixture
def task(dataset: DatasetRef, tmp_path: Path) -> Any:
    return load_task(LAB, prepare_task(LAB, dataset, tmp_path / "task"))


def scored(chat: BardChat, task: Any, folder: Path, limit: int | None = None) -> Scores:
    return score(chat, LAB.model_copy(update={"max_samples": limit}), task, folder)


class Oracle(BardChat):
    """Gives the answers it is told, as if in two forwards each; a None among them crashes its batch."""

    def __init__(self, pretrained: str, texts: list[str | None], **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.texts, self.seen = dict(enumerate(texts)), []
        self.asked: dict[str, int] = {}
        self.batch: list[int] = []

    def encode(self, conversations: Any) -> dict[str, torch.Tensor]:
        self.batch = [self.asked.setdefault(prompt_digest(chat), len(self.asked)) for chat in conversations]
        return super().encode(conversations)

    def decode(self, inputs: dict[str, torch.Tensor]) -> GenerationOutput:
        prompts = [ids[keep.bool()].tolist() for ids, keep in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        told = [self.texts[index] for index in self.batch]
        if None in told:
            raise RuntimeError("out of luck")
        self.seen += prompts
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
    make_model: Callable[..., ModelRef], task: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    texts = [row["answer"] for row in rows]
    texts[0] = "  " + texts[0].replace(" ", "  ")  # spaces do not count
    fields = texts[1].split()
    texts[1] = " ".join(["?", *fields[1:]])  # one field wrong
    texts[2] = ""
    chat = Oracle(make_model(tmp_path / "model", 4).uri, texts, batch_size=3)

    scores = scored(chat, task, tmp_path / "out")

    count = len(rows)
    assert scores.metrics["exact"] == pytest.approx((count - 2) / count)
    assert scores.metrics["fields"] == pytest.approx((count - 2 + (len(fields) - 1) / len(fields)) / count)
    assert [type(value) for value in scores.metrics.values()] == [float, float]
    assert [record["id"] for record in scores.records] == [row["id"] for row in rows]
    assert [record["reference"] for record in scores.records] == [row["answer"] for row in rows]
    assert [record["score"] for record in scores.records] == [1.0, 0.0, 0.0] + [1.0] * (count - 3)
    assert {record["forwards"] for record in scores.records} == {2}
    assert json.loads(json.dumps(scores.records)) == scores.records
    assert chat.seen == [row["input_ids"][: row["turns"][-1][0]] for row in rows]
    written = json.loads(next((tmp_path / "out").rglob("*_results.json")).read_text())
    assert {name: written["results"]["bard_lab"][f"{name},none"] for name in scores.metrics} == scores.metrics


def test_a_crashing_sample_is_recorded_and_loses_no_other(
    make_model: Callable[..., ModelRef], task: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    uri = make_model(tmp_path / "model", 4).uri
    texts: list[str | None] = [row["answer"] for row in rows]
    scores = scored(Oracle(uri, [texts[0], None, *texts[2:]], batch_size=4), task, tmp_path / "a")
    assert [record["error"] for record in scores.records] == [None, "RuntimeError: out of luck"] + [None] * (len(rows) - 2)
    assert scores.metrics["exact"] == pytest.approx((len(rows) - 1) / len(rows))
    with pytest.raises(RuntimeError, match=r"all 8 samples crashed; the first: RuntimeError: out of luck"):
        scored(Oracle(uri, [None] * len(rows), batch_size=4), task, tmp_path / "b")


def test_the_batch_size_changes_no_answer(make_model: Callable[..., ModelRef], task: Any, tmp_path: Path) -> None:
    uri = make_model(tmp_path / "model", 4).uri
    runs = [
        scored(BardChat(uri, batch_size=size, max_new_tokens=10), task, tmp_path / str(size), limit=5).records for size in (1, 4)
    ]
    assert len(runs[0]) == 5
    assert runs[0] == runs[1]


def test_speed_prompts_are_spread_over_the_benchmark(
    make_model: Callable[..., ModelRef], task: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    chat = BardChat(make_model(tmp_path / "model", 4).uri)
    prompts = [row["input_ids"][: row["turns"][-1][0]] for row in rows]
    assert [p["input_ids"][0].tolist() for p in chat.some_prompts(task, 2)] == [prompts[0], prompts[len(rows) // 2]]
    assert len(chat.some_prompts(task, 100)) == len(rows)


def test_a_benchmarks_limits_reach_the_processor(make_model: Callable[..., ModelRef], tmp_path: Path) -> None:
    chat = BardChat(make_model(tmp_path / "model", 4).uri, max_new_tokens=50)
    picture, words = {"type": "image", "url": Image.new("RGB", (256, 256))}, {"type": "text", "text": "Which?"}
    messages = [{"role": "user", "content": [words, picture]}]
    free = chat.encode([chat.chat_of(messages)])
    chat.follow(LAB.model_copy(update={"max_pixels": 64 * 64, "max_new_tokens": 7, "interleave_visuals": False}))
    capped = chat.encode([chat.chat_of(messages)])
    assert (free["image_grid_thw"].tolist(), capped["image_grid_thw"].tolist()) == ([[1, 16, 16]], [[1, 4, 4]])
    assert [item["type"] for item in chat.chat_of(messages)[0]["content"]] == ["image", "text"]
    assert chat.max_new_tokens == 7
    chat.follow(LAB)
    assert chat.encode([chat.chat_of(messages)])["input_ids"].tolist() == free["input_ids"].tolist()
    assert chat.max_new_tokens == 50


def test_videos_become_frames(make_model: Callable[..., ModelRef], tmp_path: Path) -> None:
    import av

    path = str(tmp_path / "grey.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 64
        for shade in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    chat = BardChat(make_model(tmp_path / "model", 4).uri, max_new_tokens=4)
    chat.follow(LAB.model_copy(update={"video_frames": 4}))
    content = [{"type": "video", "url": path}, {"type": "text", "text": "Which?"}]
    inputs = chat.encode(
        [chat.chat_of([{"role": "user", "content": content}]), chat.chat_of([{"role": "user", "content": content[1:]}])]
    )
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 4]]  # four frames, two at a time
    assert len(chat.decode(inputs).stats.rows) == 2


def test_a_metric_without_a_number_is_an_error() -> None:
    assert _metrics(LAB, {"alias": "t", "exact,none": 0.5, "exact_stderr,none": "N/A", "note,none": "N/A"}) == {"exact": 0.5}
    with pytest.raises(RuntimeError, match=r"task 'bard_lab' gave 'N/A' for exact"):
        _metrics(LAB, {"exact,none": "N/A"})
    with pytest.raises(RuntimeError, match=r"no metric exact; it has: fields"):
        _metrics(LAB, {"fields,none": 0.5})


def test_a_prompt_variant_is_never_a_silent_default() -> None:
    variants = {"default": {"pre_prompt": ""}, "qwen3_vl": {"pre_prompt": "Question: "}, "pre_prompt": ""}
    named = {name: LAB.model_copy(update={"prompt": name}) for name in ("qwen3_vl", "default", "qwen9_vl", None)}
    check_prompt(named["qwen3_vl"], variants)
    check_prompt(named["default"], variants)
    check_prompt(named[None], None)
    for name, words in (("qwen9_vl", "not one of default, qwen3_vl"), (None, "prompt None is not one of")):
        with pytest.raises(SuiteError, match=words):
            check_prompt(named[name], variants)
    with pytest.raises(SuiteError, match="write prompt: null"):
        check_prompt(named["default"], None)


def test_single_samples_are_scored_whatever_the_task_keeps_of_them() -> None:
    benchmark = Benchmark(name="b", task="b", prompt=None, metrics={"rate": 2.0})
    only = {"rate": lambda items: 2.0 * sum(item["answer"] == item["given"] for item in items) / len(items)}
    assert sample_score(benchmark, only, {"rate": 1}) == 0.5
    assert sample_score(benchmark, only, {"rate": {"score": 1.0, "category": "x"}}) == 1.0
    assert sample_score(benchmark, only, {"rate": {"answer": "A", "given": "A"}}) == 1.0
    assert sample_score(benchmark, only, {"rate": {"answer": "A"}}) is None
    assert sample_score(benchmark, only, {"other": 1.0}) is None


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'block' or 'ar'"):
        BardChat("anywhere", mode="fast")
