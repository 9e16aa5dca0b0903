"""Frames of a decode in the terminal, live."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bard_core.serving.frames import Canvas, Frame

MASK = "░"
FRAME_S = 0.15  # a frame stands for
LONGEST_S = 5.0  # that is watched on after the answer's end


@contextmanager
def live(canvas: "Canvas") -> Iterator[Any]:
    """While the body runs, its ``update()`` shows the newest frame in the terminal.

    A frame stands for ``FRAME_S``, so that eyes can follow, and the decoder never waits for it: while it decodes, the newest
    frame follows; those after the last one shown are shown once the answer is there.
    """
    from rich.console import Console
    from rich.live import Live

    with Live(console=(console := Console(stderr=True)), auto_refresh=False) as screen:
        shown, last = 0, 0.0

        def update() -> None:
            nonlocal shown, last
            if len(canvas.frames) > shown and time.perf_counter() - last >= FRAME_S:
                shown = len(canvas.frames) if shown else 1  # the first is that of masks alone
                screen.update(drawn(canvas.frames[shown - 1]), refresh=True)
                last = time.perf_counter()

        yield update
        left = canvas.frames[shown:] if console.is_terminal else canvas.frames[-1:]
        for frame in left:
            if console.is_terminal:
                time.sleep(min(FRAME_S, LONGEST_S / len(left)))
            screen.update(drawn(frame), refresh=True)


def drawn(frame: "Frame") -> "RenderableType":
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


def pace(frame: "Frame") -> str:
    """One line of numbers; token by token, as many forwards as tokens would have been needed, each as long as these."""
    each = frame.tokens / frame.steps if frame.steps else 0.0
    saved = max(0, frame.tokens - frame.steps)
    share = f", ~{saved / frame.tokens:.0%} of the time" if frame.tokens else ""
    rate = frame.tokens / frame.seconds if frame.seconds else 0.0
    return f"{frame.tokens} tokens, {frame.steps} steps, {each:.1f} a step, {rate:.0f} tok/s; saved {saved} forwards{share}"
