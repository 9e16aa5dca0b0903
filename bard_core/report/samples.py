"""What a report shows of the answers: some that are right, some that the shipped model gets wrong, and one coming about."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bard_core.config.sections.evaluation import DecodingConfig
from bard_core.data.heldout import held_out
from bard_core.decoding import DoneEvent, generate_autoregressive, stream
from bard_core.evaluation.compare import load_samples, source_of
from bard_core.models import bard_settings
from bard_core.serving.chat import Chat
from bard_core.serving.frames import Canvas
from bard_core.store import artifacts
from bard_core.store.refs import DatasetRef, EvalResult

RIGHT, WRONG = 3, 4  # samples shown
LOOKED_FOR = 16  # answers of most forwards, of which one is shown coming about
LARGEST_WATCHED = 2**30  # bytes of a model folder that a report's small machine still loads to show an answer


@dataclass(frozen=True)
class Shown:
    """``records`` are for report.json; ``images`` are theirs, sample by sample."""

    records: list[dict[str, Any]]
    images: list[list[bytes]]


def choose(results: Sequence[EvalResult], dataset: DatasetRef, judged_by: str) -> Shown:
    """Samples of the prepared dataset: of those that the model ``judged_by`` answers wrongly and rightly, spread over all.

    Public benchmarks bring documents of their own, which are not shown.
    """
    answers = {result.model.name: {record["id"]: record for record in load_samples(result)} for result in results}
    judged = list(answers[source_of(results).model.name])
    of = answers[judged_by]
    wrong = _spread([key for key in judged if not is_right(of[key])], WRONG)
    right = _spread([key for key in judged if is_right(of[key])], RIGHT + WRONG - len(wrong))
    documents = {row["id"]: row for row in held_out(dataset, [*wrong, *right])}
    chosen = [key for key in [*wrong, *right] if key in documents]
    records = [
        {
            "id": key,
            "question": _question(documents[key]),
            "reference": documents[key]["answer"],
            "failure": key in wrong,
            "answers": {name: texts[key]["text"] for name, texts in answers.items()},
            "right": {name: is_right(texts[key]) for name, texts in answers.items()},
        }
        for key in chosen
    ]
    return Shown(records, [documents[key]["images"] for key in chosen])


def _spread(keys: list[str], count: int) -> list[str]:
    return keys[:: max(1, len(keys) // count)][:count] if count > 0 else []


def is_right(record: dict[str, Any]) -> bool:
    """By its score, else by its text, spaces normalised."""
    if isinstance(score := record.get("score"), int | float):
        return bool(score >= 1.0)
    return bool(record["text"].split() == str(record["reference"]).split())


def _question(document: dict[str, Any]) -> str:
    last = [message for message in json.loads(document["messages"]) if message["role"] == "user"][-1]
    return " ".join(item["text"] for item in last["content"] if item["type"] == "text").strip()


def slowest(model: EvalResult, dataset: DatasetRef) -> dict[str, Any] | None:
    """The document of the prepared dataset whose answer, right where any is, took most forwards: there is most to be seen."""
    answers = load_samples(model)
    right = [record for record in answers if is_right(record)] or answers
    longest = sorted(right, key=lambda record: -(record.get("forwards") or 0))[:LOOKED_FOR]
    documents = {row["id"]: row for row in held_out(dataset, [record["id"] for record in longest])}
    return next((documents[record["id"]] for record in longest if record["id"] in documents), None)


def watch(model: EvalResult, source: EvalResult, document: dict[str, Any], decoding: DecodingConfig) -> dict[str, Any] | None:
    """One answer step by step, and the source's tokens one by one; None for models that a small machine should not load.

    Steps, not seconds: the same models give the same report.
    """
    sizes = sum(entry.size for result in (model, source) for entry in artifacts.read_manifest(result.model.uri).files)
    if sizes > LARGEST_WATCHED:
        return None
    chat = Chat.open(artifacts.fetch(model.model))
    messages = _asked(document, bard_settings(chat.model).system_prompt)
    options = decoding.model_dump(exclude={"compiled"})
    canvas = Canvas(chat)
    for event in canvas.follow(stream(chat.model, chat.inputs(messages), tokenizer=chat.tokenizer, **options)):
        if isinstance(event, DoneEvent):
            forwards = event.output.stats.forwards
    slow = Chat.open(artifacts.fetch(source.model))
    ar = generate_autoregressive(
        slow.model,
        slow.inputs(messages),
        max_new_tokens=decoding.max_new_tokens,
        tokenizer=slow.tokenizer,
        mask_token_id=bard_settings(slow.model).mask_token_id,
    )
    frames = [
        {"forward": frame.steps, "cells": [[cell.text, cell.confidence, cell.new] for cell in frame.cells]}
        for frame in canvas.frames
    ]
    return {
        "model": model.model.name,
        "question": _question(document),
        "forwards": forwards,
        "frames": frames,
        "source": {"pieces": slow.pieces(ar.sequences[0].tolist()), "forwards": ar.stats.forwards},
    }


def _asked(document: dict[str, Any], system: str | None) -> list[dict[str, Any]]:
    """The document's messages without the answer, its images opened."""
    import io

    from PIL import Image

    from bard_core.data.conversation import with_system_turn

    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in document["images"]]
    messages = json.loads(document["messages"])
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    for message in messages:
        for item in message["content"] if not isinstance(message["content"], str) else ():
            if item["type"] == "image":
                item["image"] = pictures[item["image"]]
    return with_system_turn(messages, system)
