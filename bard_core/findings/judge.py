"""Judging a model in this process: held-out questions, the lab's own score, tokens a forward, and speed against the source.

What the pipeline does through lmms-eval, without its start-up: the same prompts, decoders and score.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.data.conversation import with_system_turn
from bard_core.data.heldout import held_out
from bard_core.data.images import open_image
from bard_core.decoding import GenerationOutput, generate, generate_autoregressive
from bard_core.evaluation.speed import Decode, compare, take_turns
from bard_core.evaluation.suites.tasks.bard_lab.lab import process_results
from bard_core.evaluation.tradeoff import decodings
from bard_core.findings.spec import SELF_SPECULATION
from bard_core.models import bard_settings, load
from bard_core.store import artifacts
from bard_core.store.refs import DatasetRef, ModelRef

AUTOREGRESSIVE = "ar"  # the source's only point


class Questions:
    """The held-out questions of a dataset, encoded once for all decoders of a model."""

    def __init__(self, dataset: DatasetRef, model_folder: Path, system_prompt: str | None, config: EvaluationConfig) -> None:
        from transformers import AutoProcessor

        read: Any = AutoProcessor.from_pretrained
        self.processor = read(model_folder)
        self.rows = list(held_out(dataset))[: config.max_samples]
        chats = [with_system_turn(_chat(row), system_prompt) for row in self.rows]
        starts = range(0, len(chats), config.batch_size)
        self.batches = [self._encode(chats[start : start + config.batch_size]) for start in starts]
        self._chats = chats

    def some(self, count: int) -> dict[int, dict[str, Any]]:
        """Up to ``count`` prompts by number, one a batch, spread over all."""
        numbers = range(0, len(self._chats), max(1, len(self._chats) // count))[:count]
        return {number: self._encode([self._chats[number]]) for number in numbers}

    def _encode(self, chats: Sequence[Any]) -> dict[str, Any]:
        padding = {"padding": True, "padding_side": "left"}
        how: Any = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        return dict(self.processor.apply_chat_template(list(chats), processor_kwargs=padding, **how))

    def answer(self, decode: Decode) -> dict[str, Any]:
        """Scores, real tokens and forwards of every sample in order, and their sums."""
        outputs: list[GenerationOutput] = [decode(batch) for batch in self.batches]
        texts = [text for out in outputs for text in self.processor.batch_decode(out.sequences, skip_special_tokens=True)]
        scores = [process_results(row, [text]) for row, text in zip(self.rows, texts, strict=True)]
        stats = [row for out in outputs for row in out.stats.rows]
        tokens, forwards = [row.real_tokens for row in stats], [row.forwards for row in stats]
        right = [int(score["exact"]) for score in scores]
        return {
            "accuracy": sum(right) / len(right),
            "fields": sum(score["fields"] for score in scores) / len(right),
            "tokens_per_forward": sum(tokens) / sum(forwards),
            "samples": {"right": right, "real_tokens": tokens, "forwards": forwards},
        }


def _chat(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation up to the last answer, images opened."""

    def item(part: dict[str, Any]) -> dict[str, Any]:
        return {"type": "image", "image": open_image(row["images"][part["image"]])} if part["type"] == "image" else part

    turns = json.loads(row["messages"])[:-1]
    return [{"role": turn["role"], "content": [item(part) for part in turn["content"]]} for turn in turns]


def judge(model: ModelRef, source: ModelRef, dataset: DatasetRef, config: EvaluationConfig) -> dict[str, Any]:
    """A model at every threshold of ``config``: {"points": threshold -> numbers, "answers": tokens of each right answer, "timed":
    numbers of the questions that were timed}.

    Accuracy is the share of answers that are right as a whole. Speed is on ``config.speed_samples`` prompts, one by one, all
    decoders in turn with the source's own autoregression.

    Raises:
        ArtifactError: a model or the dataset is missing or torn.
    """
    folder = artifacts.fetch(model)
    baseline = load(artifacts.fetch(source))
    limit = config.decoding.max_new_tokens
    decoders: dict[str, Decode] = {AUTOREGRESSIVE: partial(generate_autoregressive, baseline, max_new_tokens=limit)}
    asked = load(folder) if model.stage != "source" else baseline
    settings = bard_settings(asked)
    if model.stage != "source":
        for threshold, decoding in decodings(config, settings.clean_attention).items():
            decoders[point_of(threshold)] = partial(generate, asked, **decoding.model_dump())
    questions = Questions(dataset, folder, settings.system_prompt, config)
    mine = [name for name in decoders if (name == AUTOREGRESSIVE) == (model.stage == "source")]
    points = {name: questions.answer(decoders[name]) for name in mine}
    prompts = questions.some(config.speed_samples)
    timings = take_turns([*prompts.values()], decoders)
    for name, point in points.items():
        speed = asdict(compare(timings[name], timings[AUTOREGRESSIVE]))
        point["speed"] = {key: value for key, value in speed.items() if key not in ("peak_bytes", "ar_peak_bytes")}
        point["speedup"] = speed["speedup"]
    ids = questions.processor.tokenizer([row["answer"] for row in questions.rows])["input_ids"]
    answers = [len(answer) + 1 for answer in ids]
    return {"block_size": settings.block_size, "points": points, "answers": answers, "timed": [*prompts]}


def point_of(threshold: float | str | None) -> str:
    """The name of a point of decoding in a judgement; None or its name: self-speculation."""
    return SELF_SPECULATION if threshold in (None, SELF_SPECULATION) else f"{threshold:g}"
