"""Our model inside lmms-eval: it is found, sees the prompts it was trained on, and its answers are scored and counted right."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models.registry_v2 import ModelRegistryV2
from PIL import Image

from bard_core.config.sections.evaluation import DecodingConfig
from bard_core.data.heldout import COLUMNS
from bard_core.data.reader import Reader
from bard_core.decoding import GenerationOutput, GenerationStats, RowStats
from bard_core.decoding.settings import resolve
from bard_core.evaluation import gen_kwargs
from bard_core.evaluation.answers import prompt_digest
from bard_core.evaluation.lmms_plugin import BardChat, manifest
from bard_core.evaluation.lmms_score import Scores, load_task, score
from bard_core.evaluation.suites import load_suite, prepare_task
from bard_core.store.refs import DatasetRef, ModelRef

LAB = load_suite("lab").benchmarks[0]


def read_rows(dataset: DatasetRef) -> list[dict[str, Any]]:
    reader = Reader(dataset, "eval")
    rows = [reader.row(i, (*COLUMNS, "input_ids", "turns")) for i in range(len(reader))]
    return [{name: value.as_py() for name, value in row.items()} for row in rows]


@pytest.fixture
def rows(dataset: DatasetRef) -> list[dict[str, Any]]:
    return read_rows(dataset)


@pytest.fixture
def task(dataset: DatasetRef, tmp_path: Path) -> Any:
    return load_task(LAB, prepare_task(LAB, dataset, tmp_path / "task"))


def request(doc_id: int, kwargs: dict[str, Any], task: str = "bard_lab", messages: Any = None) -> Instance:
    """As lmms-eval's chat tasks make it."""
    arguments = ("", messages, kwargs, doc_id, task, "test")
    return Instance("generate_until", arguments, 0, {"task": task, "doc_id": doc_id, "repeats": 1})


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

    def decode(self, inputs: dict[str, torch.Tensor], asked: Any = None) -> GenerationOutput:
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


def test_every_knob_of_a_configuration_reaches_the_decoder(make_model: Callable[..., ModelRef], tmp_path: Path) -> None:
    said = {"strategy": "static", "denoising_steps": 2, "confidence_threshold": "0.7", "revision_threshold": "0.2"}
    chat = BardChat(make_model(tmp_path / "model", 4).uri, **said)
    assert {*chat.options, "max_new_tokens"} == {*DecodingConfig.model_fields, "block_size"}
    settings = resolve(chat.model, **chat.options)
    assert (settings.strategy, settings.denoising_steps) == ("static", 2)
    assert (settings.confidence_threshold, settings.revision_threshold) == (0.7, 0.2)


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


def test_the_recorded_system_prompt_leads_every_prompt_as_in_training(tmp_path: Path) -> None:
    from bard_core.config.sections.data import DataConfig, LabWorldConfig
    from bard_core.config.sections.source import LabModelConfig
    from bard_core.config.sections.train import TrainConfig
    from bard_core.data.prepare import prepare
    from bard_core.models import bard_settings, load
    from bard_core.training.spec import StageSpec, run_of
    from bard_core.training.stage import prepare_base

    world = LabWorldConfig(train_images=4, eval_images=4)
    data = prepare(DataConfig(lab=world, system_prompt="You are a helpful assistant."), str(tmp_path / "data"))
    spec = StageSpec(stage="source", dataset=data, train=TrainConfig(steps=1), lab_model=LabModelConfig(layers=1))
    base = prepare_base(spec, run_of(spec))
    assert bard_settings(load(base)).system_prompt == "You are a helpful assistant."
    trained = [row["input_ids"][: row["turns"][-1][0]] for row in read_rows(data)]
    chat = BardChat(base, mode="ar")
    task = load_task(LAB, prepare_task(LAB, data, tmp_path / "task"))
    asked = [chat.encode([chat.chat_of(task.doc_to_messages(document))])["input_ids"][0].tolist() for document in task.eval_docs]
    assert asked == trained
    assert "helpful" in chat.processor.tokenizer.decode(asked[0])
    plain = chat.chat_of(words("Which?")(None))
    assert plain[0] == {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]}


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
    assert chat._asked(request(0, {"max_new_tokens": 9})).max_new_tokens == 7
    chat.follow(LAB)
    assert chat.encode([chat.chat_of(messages)])["input_ids"].tolist() == free["input_ids"].tolist()
    assert chat._asked(request(0, {"max_new_tokens": 9})).max_new_tokens is None


def words(text: str) -> Any:
    return lambda _: [{"role": "user", "content": [{"type": "text", "text": text}]}]


class Recorder(BardChat):
    """Notes what it was asked; answers "A=1; B=2"."""

    def decode(self, inputs: dict[str, torch.Tensor], asked: Any = None) -> GenerationOutput:
        self.wanted = [*getattr(self, "wanted", []), (len(inputs["input_ids"]), asked)]
        told = self.processor.tokenizer(["A=1; B=2"] * len(inputs["input_ids"]), return_tensors="pt")["input_ids"]
        return GenerationOutput(told, GenerationStats((RowStats(3, 2),) * len(told), 2, 0.0, 0.0, 0.0))


def test_two_tasks_asked_together_keep_their_answers_and_kwargs(make_model: Callable[..., ModelRef], tmp_path: Path) -> None:
    chat = Recorder(make_model(tmp_path / "model", 4).uri, batch_size=4)
    chat.task_dict = {name: {"test": [None, None]} for name in ("one", "two")}
    short, stopped = {"max_new_tokens": 5}, {"until": [";", "\n\n"]}
    asked = [request(i, short, "one", words(f"1{i}")) for i in range(2)]
    asked += [request(i, stopped, "two", words(f"2{i}")) for i in range(2)]
    assert chat.generate_until(asked) == ["A=1; B=2", "A=1; B=2", "A=1", "A=1"]
    assert [rows for rows, _ in chat.wanted] == [2, 2], "a batch has one task's settings"
    assert (chat.wanted[0][1].max_new_tokens, chat.wanted[1][1].until) == (5, (";", "\n\n"))
    assert {key: answer.text for key, answer in chat.answers.items()} == {
        ("one", 0): "A=1; B=2", ("one", 1): "A=1; B=2", ("two", 0): "A=1", ("two", 1): "A=1",
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["block", "ar"])
def test_what_a_task_asks_of_generation_reaches_the_decoder(
    mode: str, make_model: Callable[..., ModelRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = make_model(tmp_path / "model", 4).uri
    chat = BardChat(uri, mode=mode, max_new_tokens=9)
    inputs = chat.encode([chat.chat_of(words("Which?")(None))])
    plain = chat.decode(inputs).sequences
    cut = chat.decode(inputs, gen_kwargs.read({"max_new_tokens": 3, "temperature": 0, "do_sample": False, "top_p": 1.0}, mode))
    assert cut.sequences.tolist() == plain[:, :3].tolist() and plain.shape[1] == 9
    texts = chat.processor.batch_decode(plain, skip_special_tokens=False)
    stop = texts[0][len(texts[0]) // 2]
    stopped = chat.decode(inputs, gen_kwargs.read({"until": stop}, mode))
    assert stopped.stats.rows[0].real_tokens < 9
    if mode == "ar":
        with pytest.raises(gen_kwargs.GenerationKwargsError, match=r"temperature=0.7 is above 0, but mode=ar decodes greedily"):
            chat.generate_until([request(0, {"temperature": 0.7})])
        return
    sampled = [
        chat.decode(inputs, gen_kwargs.read({"temperature": 5.0, "top_k": 50, "seed": s}, mode)).sequences for s in (1, 1, 2)
    ]
    assert torch.equal(sampled[0], sampled[1]) and not torch.equal(sampled[0], sampled[2])
    assert not torch.equal(sampled[0], plain)


def test_the_release_wrappers_knobs_are_model_args(make_model: Callable[..., ModelRef], tmp_path: Path) -> None:
    uri = make_model(tmp_path / "model", 4).uri
    line = f"pretrained={uri},max_pixels=4096,min_pixels=2048,interleave_visuals=False,block_size=2,max_num_frames=6,"
    line += "attn_implementation=sdpa,system_prompt=You are a helpful assistant.,confidence_threshold=1.0,strategy=dynamic"
    chat = BardChat.create_from_arg_string(line, {"batch_size": 1, "device": "cpu"})
    picture, text = {"type": "image", "url": Image.new("RGB", (256, 256))}, {"type": "text", "text": "Which?"}
    asked = chat.chat_of([{"role": "user", "content": [text, picture]}])
    assert asked[0] == {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]}
    assert [item["type"] for item in asked[1]["content"]] == ["image", "text"]
    own = {"role": "system", "content": [{"type": "text", "text": ""}]}
    assert chat.chat_of([own, {"role": "user", "content": [text]}])[0] == own, "an own system turn wins, also an empty one"
    inputs = chat.encode([asked])
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert chat.processor.image_processor.size == {"shortest_edge": 2048, "longest_edge": 4096}
    assert [len(steps) for steps in chat.decode(inputs, gen_kwargs.Asked(8)).stats.steps_per_block] == [4], "blocks of two"
    assert chat.frames == 6
    for wrong, message in (
        ({"attn_implementation": "eager"}, "attn_implementation must be sdpa"),
        ({"mode": "ar", "block_size": 4}, "block_size=4 has no meaning with mode=ar"),
        ({"min_pixels": 9000, "max_pixels": 5000}, "min_pixels 9000 is above max_pixels 5000"),
    ):
        with pytest.raises(ValueError, match=message):
            BardChat(uri, **wrong)


def test_a_cap_is_rounded_up_to_whole_blocks_where_the_suite_says_so(make_model: Callable[..., ModelRef], tmp_path: Path) -> None:
    uri = make_model(tmp_path / "model", 4).uri
    released = LAB.model_copy(update={"max_new_tokens": 6, "whole_blocks": True})
    for mode, limit in (("block", 8), ("ar", 6)):
        chat = BardChat(uri, mode=mode)
        chat.follow(released)
        assert chat._asked(request(0, {})).max_new_tokens == limit


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


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'block' or 'ar'"):
        BardChat("anywhere", mode="fast")
