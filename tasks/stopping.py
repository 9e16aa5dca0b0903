"""Ctrl-C and SIGTERM, alike in every stage: one closing sentence and exit 75 (run it again); a second one ends at once.

A stage that can end in order (training, behind a checkpoint) says so by ``deferred`` and looks at ``asked``. Any other is left
where it stands: what it had made is in no artifact yet, and its next start makes it again.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from bard_core.training.interrupts import EXIT_STOPPED

LEAVE_WITHIN_S = 60.0  # when something holds the process back: a native call, a server that does not answer

_asked = threading.Event()
_deferred: list[str] = []
_stages: list[str] = []


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked.is_set()


def listen() -> None:
    """Make both signals ours. Called again by every stage: flytekit and ``ray.init`` install handlers of their own."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    if _asked.is_set():
        os.write(2, b"\nended at once; run the same command to go on from the last checkpoint\n")
        os._exit(EXIT_STOPPED)
    _asked.set()
    if not _deferred:
        leave(f"stopped in {_stages[-1]}" if _stages else "stopped between two stages")
    print(f"\nstopping {_deferred[-1]} behind a checkpoint; once more to end at once", file=sys.stderr, flush=True)


def leave(what: str) -> NoReturn:
    """Say the closing sentence and end the process, in order where that takes less than ``LEAVE_WITHIN_S``."""
    print(f"\n{what}; run the same command to go on", file=sys.stderr, flush=True)
    last_resort = threading.Timer(LEAVE_WITHIN_S, os._exit, (EXIT_STOPPED,))
    last_resort.daemon = True
    last_resort.start()
    raise SystemExit(EXIT_STOPPED)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """While the body runs, ``name`` is what is being stopped. A stage does not begin once the process was asked to stop."""
    listen()
    if _asked.is_set():
        leave(f"stopped before {name}")
    _stages.append(name)
    try:
        yield
    finally:
        _stages.pop()


@contextmanager
def deferred(name: str) -> Iterator[None]:
    """The body looks at ``asked`` itself and leaves in order."""
    listen()
    _deferred.append(name)
    try:
        yield
    finally:
        _deferred.pop()
