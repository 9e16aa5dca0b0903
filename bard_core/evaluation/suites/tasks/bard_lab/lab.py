"""Functions of the lab task (lmms-eval loads this file by path): messages from a prepared eval row, and its scores."""

import json
from typing import Any

from PIL import Image

from bard_core.data.images import open_image


def _question(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation up to the last assistant turn."""
    messages: list[dict[str, Any]] = json.loads(doc["messages"])
    return messages[:-1]


def doc_to_messages(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Chat messages in lmms-eval's form: images as PIL pictures under ``url``."""
    pictures = doc_to_visual(doc)

    def chat_item(item: dict[str, Any]) -> dict[str, Any]:
        return {"type": "image", "url": pictures[item["image"]]} if item["type"] == "image" else item

    return [{"role": message["role"], "content": [chat_item(item) for item in message["content"]]} for message in _question(doc)]


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [open_image(data) for data in doc["images"]]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    return " ".join(item["text"] for message in _question(doc) for item in message["content"] if item["type"] == "text")


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """``exact``: the whole answer, spaces normalised. ``fields``: the share of its space-separated fields in their places."""
    reference, given = doc["answer"].split(), results[0].split()
    right = sum(a == b for a, b in zip(reference, given, strict=False))
    return {"exact": float(reference == given), "fields": right / max(len(reference), len(given), 1)}
