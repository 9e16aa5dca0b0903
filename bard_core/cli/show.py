"""An answer one can watch: frames of a decode, shown in the terminal while it runs or kept for a page.

A frame is what stands after a denoising step: every token's text, how sure the model was of it, and whether it has just come.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bard_core.decoding import Event
    from bard_core.serving.chat import Chat

MASK = "░"


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
    """Follows the events of a decode of one prompt."""

    chat: "Chat"
    frames: list[Frame] = field(default_factory=list)
    _final: list[Cell] = field(default_factory=list)
    _open: dict[int, float | None] = field(default_factory=dict)
    _steps: int = 0
    _started: float = field(default_factory=time.perf_counter)

    def follow(self, events: "Iterable[Event]") -> Iterator[Any]:
        """Every event again, once its frame is there."""
        from bard_core.decoding import BlockEvent, StepEvent

        for event in events:
            if isinstance(event, StepEvent):
                self._step(event)
            elif isinstance(event, BlockEvent):
                self._close(event.tokens[0])
            yield event

    def _step(self, event: Any) -> None:
        self._steps += 1
        tokens, filled = event.tokens[0].tolist(), event.filled[0].tolist()
        sure = [None] * len(tokens) if event.confidence is None else event.confidence[0].tolist()
        taken_back = [False] * len(tokens) if event.revised is None else event.revised[0].tolist()
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


@contextmanager
def live(canvas: Canvas) -> Iterator[Any]:
    """While the body runs, its ``update()`` shows the newest frame in the terminal."""
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False) as screen:

        def update() -> None:
            if canvas.frames:
                screen.update(drawn(canvas.frames[-1]), refresh=True)

        yield update


def drawn(frame: Frame) -> "RenderableType":
    """A frame for the terminal: green is sure, yellow less so, red least; what has just come is bold; shades are still masked."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    text = Text()
    for cell in frame.cells:
        if cell.text is None:
            text.append(MASK, style="dim")
        else:
            text.append(cell.text, style=f"{'bold ' if cell.new else ''}{colour(cell.confidence)}")
    return Group(Panel(text, border_style="dim"), Text(pace(frame), style="dim"))


def colour(confidence: float | None) -> str:
    if confidence is None:
        return "default"
    return "green" if confidence >= 0.9 else "yellow" if confidence >= 0.6 else "red"


def pace(frame: Frame) -> str:
    """One line of numbers; token by token, as many forwards as tokens would have been needed."""
    each = frame.tokens / frame.steps if frame.steps else 0.0
    saved = max(0, frame.tokens - frame.steps)
    share = f", {saved / frame.tokens:.0%} of the time at equal cost a forward" if frame.tokens else ""
    rate = frame.tokens / frame.seconds if frame.seconds else 0.0
    return f"{frame.tokens} tokens, {frame.steps} steps, {each:.1f} a step, {rate:.0f} tok/s; saved {saved} forwards{share}"


def as_data(frames: Iterable[Frame]) -> list[dict[str, Any]]:
    """Frames as plain data, for a page."""
    return [asdict(frame) for frame in frames]
