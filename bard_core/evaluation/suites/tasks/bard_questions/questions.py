"""Functions of an own benchmark's task (lmms-eval loads this file by path): messages from a question, and its score."""

from typing import Any

from PIL import Image

from bard_core.evaluation.scorers import score


def doc_to_messages(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    pictures = [{"type": "image", "url": picture} for picture in doc_to_visual(doc)]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": doc["question"]}]}]


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in doc["images"]]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    return str(doc["question"])


def doc_to_target(doc: dict[str, Any]) -> str:
    return " | ".join(doc["answers"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"score": score(doc["scorer"], results[0], doc["answers"])}
