"""An own benchmark: a JSONL file of questions, answers and images, scored by name; no code.

    {"question": "What was sold most?", "answers": ["apples"], "images": ["charts/1.png"]}

``answer`` may stand for one of ``answers``, ``image`` for one of ``images``; ``id`` is optional. Paths are relative to the file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bard_core.evaluation.scorers import Scorer


class QuestionError(Exception):
    """A line is no question: says which line of which file, and what is wrong with it."""


class Question(BaseModel):
    """One line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    question: str = Field(min_length=1)
    answers: tuple[str, ...] = Field(min_length=1)
    images: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _one_of_each(cls, values: Any) -> Any:
        if isinstance(values, dict):
            values = dict(values)
            for one, many in (("answer", "answers"), ("image", "images")):
                if one in values:
                    values[many] = [values.pop(one)]
        return values


def read_questions(path: Path) -> list[Question]:
    """All questions, image paths made absolute.

    Raises:
        QuestionError: naming the first line that is at fault. OSError: there is no such file.
    """
    questions: list[Question] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            question = Question.model_validate({"id": str(number), **json.loads(line)})
        except (ValueError, TypeError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            words = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
            raise QuestionError(f"{path}:{number}: {words}") from error
        images = tuple(str((path.parent / image).resolve()) for image in question.images)
        if missing := [image for image in images if not Path(image).is_file()]:
            raise QuestionError(f"{path}:{number}: no image {missing[0]}")
        questions.append(question.model_copy(update={"images": images}))
    ids = [question.id for question in questions]
    if not questions or len(set(ids)) < len(ids):
        raise QuestionError(f"{path}: {'an id stands there twice' if questions else 'no question in it'}")
    return questions


def write_task_data(path: Path, scorer: Scorer, target: Path) -> None:
    """The questions as lmms-eval's task of ours reads them."""
    rows = [{**question.model_dump(mode="json"), "scorer": scorer} for question in read_questions(path)]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def content_digest(path: Path) -> str:
    """sha256 over the questions and their images' bytes, wherever they lie."""
    total = hashlib.sha256()
    for question in read_questions(path):
        total.update(json.dumps([question.id, question.question, question.answers]).encode())
        for image in question.images:
            total.update(hashlib.sha256(Path(image).read_bytes()).digest())
    return total.hexdigest()
