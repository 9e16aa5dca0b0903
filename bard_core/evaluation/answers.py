"""Answers that outlive a crash: kept by what was asked of which weights in which way, so a stale one cannot be found.

A store is one folder (or S3 prefix) for one set of weights, one benchmark and one way of decoding; within it an answer is keyed
by the sha256 of its prompt, images included. Parts are written whole and named by their own sha256; a damaged one is not read.
Several processes may fill one store.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bard_core.store import storage

FLUSH_EVERY_S = 20.0


@dataclass(frozen=True)
class Answer:
    """One sample's answer and its honest counts. ``prompt`` is the sha256 of the question; ``error`` says why there is none."""

    prompt: str
    text: str
    real_tokens: int
    forwards: int
    error: str | None = None


class AnswerStore:
    """The answers at ``uri``, read once; new ones are written every :data:`FLUSH_EVERY_S` seconds and by ``flush``."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._known: dict[str, Answer] = {}
        self._new: list[Answer] = []
        self._flushed = time.monotonic()
        for name in storage.list_files(uri):
            body = storage.read_bytes(storage.join(uri, name))
            if name == _name(body):
                for line in body.decode().splitlines():
                    answer = Answer(**json.loads(line))
                    self._known[answer.prompt] = answer

    def __len__(self) -> int:
        return len(self._known)

    def get(self, prompt: str) -> Answer | None:
        return self._known.get(prompt)

    def add(self, answers: Sequence[Answer]) -> None:
        """Keep answers; those with an error are not kept, so that they are tried again."""
        good = [replace(answer, error=None) for answer in answers if answer.error is None]
        self._known.update((answer.prompt, answer) for answer in good)
        self._new += good
        if time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        if self._new:
            body = "".join(json.dumps(asdict(answer)) + "\n" for answer in self._new).encode()
            storage.write_bytes(storage.join(self.uri, _name(body)), body)
            self._new = []
        self._flushed = time.monotonic()


def _name(body: bytes) -> str:
    return f"{hashlib.sha256(body).hexdigest()}.jsonl"


def prompt_digest(messages: Sequence[dict[str, Any]]) -> str:
    """sha256 of Hugging Face chat messages: texts, and the bytes of images (PIL, arrays) and of media files (paths).

    Raises:
        TypeError: a medium of another kind.
    """
    total = hashlib.sha256()
    for message in messages:
        total.update(json.dumps(["role", message["role"]]).encode())
        for item in message["content"]:
            kind = item["type"]
            total.update(json.dumps(item if kind == "text" else [kind, _media_digest(item[kind])], sort_keys=True).encode())
    return total.hexdigest()


def _media_digest(medium: Any) -> str:
    if isinstance(medium, str):
        return storage.sha256(medium) if Path(medium).is_file() else hashlib.sha256(medium.encode()).hexdigest()
    if hasattr(medium, "tobytes"):
        shape = [str(getattr(medium, name, "")) for name in ("mode", "size", "shape", "dtype")]
        return hashlib.sha256(json.dumps(shape).encode() + medium.tobytes()).hexdigest()
    raise TypeError(f"a {type(medium).__name__} cannot be asked about: benchmarks give PIL images, arrays or paths of files")
