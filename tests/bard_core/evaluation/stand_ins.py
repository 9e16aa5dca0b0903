"""Stand-in documents of the paper's benchmarks: their columns and shapes, invented contents."""

import base64
import io
from typing import Any

from PIL import Image


def picture(width: int = 96) -> Image.Image:
    return Image.new("RGB", (width, 64), "white")


def _base64() -> str:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _mmmu(question: str, options: str, kind: str, images: int) -> dict[str, Any]:
    shown = {f"image_{i}": picture(32 * i) if i <= images else None for i in range(1, 8)}
    about = {"id": "validation_Art_1", "question": question, "options": options, "question_type": kind, "answer": "B"}
    return {**about, "subfield": "Drawing", **shown}


MCQ = {"question": "Which comes first? <image 1>", "answer": "A", "category": "math", "l2_category": "geometry"}

DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    "mmmu_val": [
        _mmmu("Compare <image 2> with <image 1>.", "['red', 'blue <image 3>']", "multiple-choice", 3),
        _mmmu("How many dots has <image 1>?", "[]", "open", 1),
    ],
    "mmmu_pro_standard": [
        _mmmu("What does <image 1> show?", "['one', 'two', 'three']", "multiple-choice", 1),
    ],
    "mme": [
        {
            "question_id": "count/1.png", "question": "Is there a dog? Please answer yes or no.", "answer": "Yes",
            "category": "count", "image": picture(),
        },
    ],
    "realworldqa": [
        {
            "question": "Which way?\n\nA. Left\nB. Right\nPlease answer directly with only the letter of the correct option "
            "and nothing else.",
            "answer": "A", "image": picture(),
        },
    ],
    "mmstar": [
        {**MCQ, "index": 0, "question": "Which colour?\nOptions: A: red, B: blue, C: green, D: grey", "image": picture()},
    ],
    "mmstar_oc": [
        {**MCQ, "index": 0, "A": "red", "B": "blue", "C": "green", "D": "grey", "image": _base64()},
    ],
    "ai2d": [{"question": "What is above?", "options": ["sun", "moon", "sea", "sand"], "answer": "2", "image": picture()}],
    "chartqa": [{"question": "What is the tallest bar?", "answer": "Blue", "type": "human_test", "image": picture()}],
}  # fmt: skip
