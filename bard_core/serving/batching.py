"""Requests that share forwards: a thread decodes; at every block boundary those who wait may start, and those who end leave.

Requests that wait together and ask for the same decoding start as one group, a batch of the engine's. Groups take turns, a
block each, so a newcomer never waits for a long answer to end; behind its first block it joins the group that decodes alike, and
they share forwards from then on. Sampled requests go alone: their seed then decides the answer.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bard_core.decoding import DoneEvent, Event, StepEvent, stream
from bard_core.decoding.batch import Decode
from bard_core.decoding.prompt import read_prompt
from bard_core.decoding.settings import end_tokens, resolve
from bard_core.models.vlm import embedding_rows
from bard_core.serving.chat import Chat
from bard_core.serving.frames import Canvas, Frame

PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


class BusyError(Exception):
    """The queue is full: come again later."""


@dataclass(frozen=True)
class Ended:
    """The last thing a request hears. ``reason`` is stop, length, or error with its words."""

    reason: str
    words: str = ""


Said = tuple[int, ...] | Frame | Ended  # a block's new tokens, what a watcher sees, the end


@dataclass(eq=False)
class Request:
    """A question on its way.

    Attributes:
        inputs: the processor's tensors of one prompt. options: the engine's, without the longest answer.
        hear: is called from the decoding thread with all that happens. watched: frames too.
    """

    inputs: dict[str, Any]
    options: dict[str, Any]
    max_new_tokens: int
    hear: Callable[[Said], None]
    watched: bool = False
    tokens: list[int] = field(default_factory=list)
    forwards: int = 0
    started: float = field(default_factory=time.perf_counter)
    ended: bool = False

    @property
    def key(self) -> object:
        """What requests of one group share."""
        return id(self) if self.options.get("temperature") else tuple(sorted(self.options.items()))

    def cancel(self) -> None:
        """Nobody listens any more."""
        self.ended = True

    def end(self, reason: str, words: str = "") -> None:
        if not self.ended:
            self.ended = True
            self.hear(Ended(reason, words))


class Batcher:
    """Owns the decoding thread of one model.

    Args:
        max_rows: requests decoded at a time. max_waiting: more are refused.
    """

    def __init__(self, chat: Chat, max_rows: int = 16, max_waiting: int = 64) -> None:
        self.chat, self.max_rows, self.max_waiting = chat, max_rows, max_waiting
        self.waiting: list[Request] = []
        self.groups: list[_Group] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def rows(self) -> int:
        """Requests being decoded."""
        return sum(len(group.active) for group in self.groups)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Raises BusyError when too many wait."""
        with self._changed:
            if len(self.waiting) >= self.max_waiting:
                raise BusyError(f"{self.max_waiting} requests wait already; try again in a moment")
            self.waiting.append(request)
            self._changed.notify()

    def close(self) -> None:
        """End the thread at the next block boundary; whoever is not answered yet hears an error."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        while self._admit():
            for group in list(self.groups):
                group.advance()
                if not group.active:
                    group.close()
                    self.groups.remove(group)
            self._join()
        for request in [*self.waiting, *(request for group in self.groups for request in group.active)]:
            request.end("error", "the server is stopping")

    def _join(self) -> None:
        """Groups that decode alike become one."""
        for group in list(self.groups):
            host = next((other for other in self.groups if other is not group and other.takes(group)), None)
            if host is not None and self.groups.index(host) < self.groups.index(group):
                host.join(group)
                self.groups.remove(group)

    def _admit(self) -> bool:
        """Start those who wait, as many as there is room for; sleeps while there is nothing to do. False: it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self.waiting or self.groups or self._closing)
            if self._closing:
                return False
            self.waiting = [request for request in self.waiting if not request.ended]
            chosen: list[list[Request]] = []
            room = self.max_rows - self.rows
            while self.waiting and room > 0:
                alike = [request for request in self.waiting if request.key == self.waiting[0].key][:room]
                self.waiting = [request for request in self.waiting if request not in alike]
                chosen.append(alike)
                room -= len(alike)
        self.groups += [_Group(self.chat, alike) for alike in chosen]
        return True


class _Group:
    """Requests that the engine decodes as one batch; self-speculation is one from its first token to its last."""

    def __init__(self, chat: Chat, requests: list[Request]) -> None:
        self.requests = dict(enumerate(requests))
        self.key = requests[0].key
        self.decode: Decode | None = None
        self.events: Iterator[Event] | None = None
        self.canvases = {row: Canvas(chat, row) for row, request in enumerate(requests) if request.watched}
        self.eos = end_tokens(chat.model, embedding_rows(chat.model), None)
        options = {**requests[0].options, "max_new_tokens": max(request.max_new_tokens for request in requests)}
        try:
            inputs = joined([request.inputs for request in requests])
            settings = resolve(chat.model, tokenizer=chat.tokenizer, **options)
            if settings.strategy == "self_speculative":
                self.events = stream(chat.model, inputs, tokenizer=chat.tokenizer, **options)
            else:
                self.decode = Decode(chat.model, read_prompt(chat.model, inputs), settings)
        except Exception as error:  # noqa: BLE001 - whoever asked is told, the others go on
            self._fail(error)

    @property
    def active(self) -> list[Request]:
        return [request for request in self.requests.values() if not request.ended]

    def takes(self, other: "_Group") -> bool:
        """Whether the other's rows can join: both decode alike and are behind their first block."""
        ready = [group.decode is not None and group.decode.blocks > 0 for group in (self, other)]
        return all(ready) and self.key == other.key and not isinstance(self.key, int)

    def join(self, other: "_Group") -> None:
        """Take the other's requests; it is used up."""
        assert self.decode is not None and other.decode is not None
        added = self.decode.admit(other.decode)
        self.requests |= {row + added: request for row, request in other.requests.items()}
        for row, canvas in other.canvases.items():
            canvas.row = row + added
            self.canvases[row + added] = canvas

    def advance(self) -> None:
        """Decode one block."""
        try:
            if self.decode is not None:
                if gone := [row for row, request in self.requests.items() if request.ended]:
                    self.decode.retire(gone)
                for event in self.decode.advance():
                    self._pass_on(event)
                return
            for event in self.events or ():
                self._pass_on(event)
                if not isinstance(event, StepEvent):
                    return
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def close(self) -> None:
        if self.decode is not None:
            self.decode.body.close()
        if isinstance(self.events, Generator):
            self.events.close()

    def _pass_on(self, event: Event) -> None:
        if isinstance(event, DoneEvent):
            for request in self.active:
                request.end("length")
            return
        for index, row in enumerate(event.rows):
            if (request := self.requests[row]).ended:
                continue
            if canvas := self.canvases.get(row):
                for frame in canvas.see(event):
                    request.hear(frame)
            if isinstance(event, StepEvent):
                request.forwards += int(event.filled[index].any())
                continue
            room = request.max_new_tokens - len(request.tokens)
            new = event.tokens[index][:room]
            request.tokens += new
            request.hear(new)
            full = len(request.tokens) >= request.max_new_tokens
            if full or row in event.finished:
                request.end("length" if full and request.tokens[-1] not in self.eos else "stop")

    def _fail(self, error: Exception) -> None:
        for request in self.active:
            request.end("error", str(error))


def joined(prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch of single prompts: what has an entry a token is padded at the left, the rest stands one after another."""
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
    names = {name for prompt in prompts for name, value in prompt.items() if isinstance(value, Tensor)}
    batch: dict[str, Any] = {}
    for name in sorted(names):
        parts = [prompt[name] for prompt in prompts if name in prompt]
        if name in PER_TOKEN:
            parts = [pad(part, (longest - part.shape[1], 0)) for part in parts]
        batch[name] = torch.cat(parts)
    return batch
