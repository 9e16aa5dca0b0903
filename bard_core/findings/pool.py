"""All pieces, several at a time in processes of their own, under one bar. What fails takes only what needs it along."""

import logging
import os
import signal
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from functools import partial
from multiprocessing import active_children, get_context
from typing import Any

from bard_core.config.sections.storage import StorageConfig
from bard_core.findings.pieces import Work
from bard_core.findings.work import found, run
from bard_core.processes import process_pool
from bard_core.progress import Bar
from bard_core.store import storage
from bard_core.training.interrupts import EXIT_STOPPED, Stopped

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at what the processes have done
_steps: Any  # in a process of the pool: the counter that all share


def run_all(pieces: Mapping[str, Any], processes: int, at: StorageConfig = StorageConfig()) -> dict[str, str]:
    """Do every piece that was not done, each after those it needs; returns why, by name and key, of those that could not be done.

    Stopped and started again, it goes on: finished pieces are found, a training from its last checkpoint.

    Args:
        pieces: by key, those that others need among them.
        processes: at once, the cores shared between them; 1: in this process.

    Raises:
        SystemExit: SIGTERM came, or Ctrl-C in this process; what was trained is kept.
    """
    waiting = {key: piece for key, piece in pieces.items() if found(piece, at) is None}
    total = sum(piece.cost for piece in pieces.values())
    with Bar(total=total, initial=total - _cost(waiting), desc="findings", unit="step") as bar:
        if processes == 1:
            return _one_by_one(pieces, waiting, at, bar)
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
        steps = get_context("forkserver").Value("q")
        before = signal.signal(signal.SIGTERM, _leave)
        with process_pool(processes, "bard_core.findings.work", initializer=_start, initargs=(threads, steps)) as pool:
            try:
                return _spread(pieces, waiting, at, bar, pool, processes, steps)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in active_children():  # a training keeps what it has; nothing goes on without us
                    child.terminate()
                raise
            finally:
                signal.signal(signal.SIGTERM, before)


def _leave(number: int, *_: object) -> None:
    raise SystemExit(128 + number)


def _cost(pieces: Mapping[str, Work]) -> int:
    return sum(piece.cost for piece in pieces.values())


def _one_by_one(pieces: Mapping[str, Any], waiting: dict[str, Any], at: StorageConfig, bar: Any) -> dict[str, str]:
    failed: dict[str, str] = {}
    lost: set[str] = set()
    for key, piece in waiting.items():
        bar.set_postfix_str(piece.name, refresh=False)
        if lost & {*piece.needs}:
            lost.add(key)
            continue
        gone = partial(_move, bar, bar.n)
        try:
            run(piece, dict(pieces), at, gone)
        except Stopped as stopped:
            log.warning("%s: %s", _called(piece), stopped)
            raise SystemExit(EXIT_STOPPED) from stopped
        except Exception as error:  # noqa: BLE001 - one piece must not lose the others
            failed[_called(piece)] = _said(error)
            lost.add(key)
        gone(piece.cost)
    return failed


def _move(bar: Any, begun: int, steps: int) -> None:
    bar.update(max(0, begun + steps - bar.n))


def _spread(
    pieces: Mapping[str, Any], waiting: dict[str, Any], at: StorageConfig, bar: Any, pool: Executor, at_once: int, steps: Any
) -> dict[str, str]:
    """Hand out what is ready, until nothing is left that could be; never more than can be begun, so that ending them ends all."""
    failed: dict[str, str] = {}
    lost: set[str] = set()
    running: dict[Future[Any], str] = {}
    ended = bar.n
    while waiting or running:
        for key, piece in [*waiting.items()]:
            if lost & {*piece.needs}:
                lost.add(key)
                del waiting[key]
                ended += piece.cost
            elif len(running) < at_once and not any(need in waiting or need in running.values() for need in piece.needs):
                needed = {need: pieces[need] for need in piece.needs}
                running[pool.submit(_run, piece, needed, at)] = key
                del waiting[key]
        if not running:
            break
        bar.set_postfix_str(", ".join(pieces[key].name for key in [*running.values()][:4]), refresh=False)
        for future in wait(running, timeout=LOOK_S, return_when=FIRST_COMPLETED).done:
            key = running.pop(future)
            ended += pieces[key].cost
            if (error := future.exception()) is not None:
                failed[_called(pieces[key])] = _said(error)
                log.error("%s: %s", _called(pieces[key]), _said(error))
                lost.add(key)
        _move(bar, ended, steps.value)
    _move(bar, ended, 0)
    return failed


def _run(piece: Work, needed: dict[str, Any], at: StorageConfig) -> None:
    """As ``run``, in a process of the pool: while it trains, its steps are among those that the bar shows."""
    gone = 0

    def count(step: int) -> None:
        nonlocal gone
        with _steps.get_lock():
            _steps.value += step - gone
        gone = step

    try:
        run(piece, needed, at, count)
    finally:
        count(0)


def _called(piece: Work) -> str:
    """Several variants have pieces of one name."""
    return f"{piece.name} ({piece.key[:8]})"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _start(threads: int, steps: Any) -> None:
    """A process's share of the cores, and where it counts its steps. What it says goes to a file: the bar is another's."""
    import torch

    from bard_core import known_warnings

    global _steps
    _steps = steps
    with (storage.home() / "findings.log").open("a") as words:
        for stream in (1, 2):
            os.dup2(words.fileno(), stream)
    known_warnings.hush()
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us; training listens for itself
