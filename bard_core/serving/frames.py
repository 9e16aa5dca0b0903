"""A decode as frames that people can watch: what stands after every denoising step, and how sure the model was of it."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from bard_core.decoding import DoneEvent, Event, StepEvent
from bard_core.serving.chat import Chat


@dataclass(frozen=True)
class Cell:
    """One position: its text (None while it is masked), the confidence it was filled with, and whether this step filled it."""

    text: str | None
    confidence: float | None
    new: bool


@dataclass(frozen=True)
class Frame:
    """What stands ``seconds`` after the start, ``steps`` forwards in; ``cells`` are those of the answer and the open block."""

    seconds: float
    steps: int
    tokens: int
    cells: tuple[Cell, ...]


@dataclass
class Canvas:
    """Follows one row of a decode."""

    chat: Chat
    row: int = 0
    frames: list[Frame] = field(default_factory=list)
    _final: list[Cell] = field(default_factory=list)
    _open: dict[int, float | None] = field(default_factory=dict)
    _steps: int = 0
    _started: float = field(default_factory=time.perf_counter)

    def follow(self, events: Iterable[Event]) -> Iterator[Event]:
        """Every event again, once its frame is there."""
        for event in events:
            self.see(event)
            yield event

    def see(self, event: Event) -> list[Frame]:
        """Add the event's frames, where it is one of this row's, and return them. A block's first is that of its masks alone."""
        before = len(self.frames)
        if isinstance(event, DoneEvent) or self.row not in event.rows:
            return []
        index = event.rows.index(self.row)
        if isinstance(event, StepEvent):
            self._step(event, index)
        else:
            self._close(event.tokens[index])
        return self.frames[before:]

    def _step(self, event: StepEvent, row: int) -> None:
        tokens, filled = event.tokens[row].tolist(), event.filled[row].tolist()
        if not self._open:
            started = self.frames[-1].seconds if self.frames else 0.0
            masks = (Cell(None, None, False),) * len(tokens)
            self.frames.append(Frame(started, self._steps, len(self._final), (*self._final, *masks)))
        self._steps += any(filled)  # a row whose block is full waits for the others
        sure: list[float | None] = [None] * len(tokens) if event.confidence is None else event.confidence[row].tolist()
        taken_back = [False] * len(tokens) if event.revised is None else event.revised[row].tolist()
        for index, (came, back) in enumerate(zip(filled, taken_back, strict=True)):
            if back:
                self._open.pop(index, None)
            if came:
                self._open[index] = sure[index]
        pieces = self.chat.pieces(tokens)
        cells = [
            Cell(pieces[i], self._open[i], filled[i]) if i in self._open else Cell(None, None, False) for i in range(len(tokens))
        ]
        self._add([*self._final, *cells], len(self._final) + len(self._open))

    def _close(self, tokens: tuple[int, ...]) -> None:
        pieces = self.chat.pieces(tokens)
        self._final += [Cell(piece, self._open.get(index), False) for index, piece in enumerate(pieces)]
        self._open = {}
        self._add(self._final, len(self._final))

    def _add(self, cells: list[Cell], tokens: int) -> None:
        self.frames.append(Frame(time.perf_counter() - self._started, self._steps, tokens, tuple(cells)))


def as_data(frames: Iterable[Frame]) -> list[dict[str, Any]]:
    """Frames as plain data, for a page."""
    return [asdict(frame) for frame in frames]
