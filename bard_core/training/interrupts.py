"""Asking a running stage to checkpoint before its next regular one: because a node goes, or because the run is to stop.

SIGTERM or Ctrl-C reaches the driver (or, without one, the training process itself). The driver leaves a request in the run's
folder, every rank agrees on it between two steps, and the run ends behind a complete checkpoint. Starting it again goes on.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from enum import IntEnum

from bard_core.store import claims, storage
from bard_core.store.claims import Claim, ClaimLostError
from bard_core.training.ranks import largest_over_ranks, rank_and_world

log = logging.getLogger(__name__)
STOP = "stop"
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again


class Wish(IntEnum):
    """What the ranks agreed on; the larger wins."""

    NONE = 0
    CHECKPOINT = 1  # and go on: a node will be taken away soon
    STOP = 2  # and leave
    LEAVE = 3  # without a checkpoint: another driver has the run


class Stopped(Exception):
    """The run was asked to stop and did, behind the checkpoint of ``step``."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step} as asked; run the same command again to go on from there")
        self.step = step


class Interrupts:
    """Polled by every rank once a step; all get the same answer.

    Args:
        run_uri: where a request to stop is looked for, by rank 0, every ``pause_s``.
        losing_node: says whether a node of this run is about to be taken away. It may be a collective: every rank calls it at the
            same steps, about every ``pause_s``. A checkpoint is wished for once, when it first says so.
        claim: the driver's claim to the run. Once another has it, this driver is taken for dead and its ranks leave.

    A look that fails is no answer: the next one asks again.
    """

    def __init__(
        self,
        run_uri: str,
        losing_node: Callable[[], bool] | None = None,
        pause_s: float | None = None,
        claim: Claim | None = None,
    ) -> None:
        self._uri, self._losing_node, self._claim = storage.join(run_uri, STOP), losing_node, claim
        self._pause_s = pause_s if pause_s is not None else (1.0 if storage.is_local(run_uri) else 5.0)
        self._next_look, self._warned = 0.0, False
        self._signalled = threading.Event()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._signal) for number in (signal.SIGTERM, signal.SIGINT)}

    def poll(self) -> Wish:
        """What to do after this step."""
        look, mine = False, Wish.STOP if self._signalled.is_set() else Wish.NONE
        if rank_and_world()[0] == 0 and time.monotonic() >= self._next_look:
            look, self._next_look = True, time.monotonic() + self._pause_s
            mine = max(mine, self._look())
        agreed = largest_over_ranks(2 * mine + look)
        wish, look = Wish(agreed // 2), agreed % 2 == 1
        if wish is Wish.NONE and look and self._losing_node is not None and not self._warned and self._losing_node():
            self._warned = True
            wish = Wish.CHECKPOINT
        return wish

    def _look(self) -> Wish:
        try:
            if self._claim is not None:
                claims.check(self._claim)
            return Wish.STOP if storage.exists(self._uri) else Wish.NONE
        except ClaimLostError as lost:
            log.error("%s; leaving the run to it", lost)
            return Wish.LEAVE
        except storage.StorageError as error:
            log.warning("no look at what is wished for: %s", error)
            return Wish.NONE

    def _signal(self, *_: object) -> None:
        self._signalled.set()
        self.close()  # a second one ends at once

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self.__dict__.pop("_previous", {}).items():
            signal.signal(number, handler)


def ask_to_stop(run_uri: str) -> None:
    """Ask the run to stop behind a checkpoint."""
    storage.write_bytes(storage.join(run_uri, STOP), b"stop\n")


def withdraw(run_uri: str) -> None:
    """Take the request back; called before a run starts."""
    storage.delete_file(storage.join(run_uri, STOP))
