"""Who does a piece of work, where several may be told to: one claim a piece, kept beside the artifacts, ended or run out.

A claim is a folder of numbered files; the highest number holds. A number is taken by creating its file, which only one can do.
Who finds the holder released or run out creates the next number. Nothing is ever deleted, so no race can undo a claim.

A holder renews while it works (``kept``). Machines that share claims must agree on the time to within a few seconds. A holder
whose process is seen to be dead, on this machine, is replaced at once.
"""

import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bard_core.store import storage

log = logging.getLogger(__name__)
LEASE_S = 120.0  # a holder that died in the midst of its work is replaced after this
HANDOVER_S = 1800.0  # how long the next task of the same work may take to start


class ClaimLostError(Exception):
    """The lease ran out and another took over: says who. Stop; the other does the work."""


class Claim(BaseModel):
    """A claim that was obtained; plain values, so that it can travel between tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    number: int
    owner: str


@dataclass(frozen=True)
class _State:
    number: int
    owner: str
    until: float

    @property
    def free(self) -> bool:
        return self.until <= time.time() or process_is_dead(self.owner.rpartition("/")[0])


def this_process() -> str:
    """A name of this process that no other has, before or after: host, process id, and when it was started."""
    return f"{socket.gethostname()}/{os.getpid()}/{_started(os.getpid())}"


def process_is_dead(name: str) -> bool:
    """Whether the process that ``this_process`` named is seen to be dead. Of another machine nothing can be seen."""
    host, _, rest = name.partition("/")
    pid, _, started = rest.partition("/")
    return host == socket.gethostname() and pid.isdigit() and _started(int(pid)) != started


def _started(pid: int) -> str:
    """When a process was started, as Linux counts it; "-" where only its life can be seen, "" when it is dead."""
    try:
        os.kill(pid, 0)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except ProcessLookupError:
        return ""
    except OSError:
        return "-"
    return "" if fields[0] in "ZX" else fields[19]


def _state(uri: str) -> _State:
    """The newest claim; number 0, free, where there was none."""
    numbers = [int(name.removesuffix(".json")) for name in storage.list_files(uri) if name.removesuffix(".json").isdigit()]
    if not numbers:
        return _State(0, "nobody", 0.0)
    body = json.loads(storage.read_bytes(_file(uri, max(numbers))))
    return _State(max(numbers), body["owner"], body["until"])


def _file(uri: str, number: int) -> str:
    return storage.join(uri, f"{number:06d}.json")


def _body(owner: str, until: float) -> bytes:
    return json.dumps({"owner": owner, "until": until}).encode()


def take(uri: str, lease_s: float = LEASE_S, travels: bool = True) -> Claim | None:
    """The claim to the work named by ``uri``, or None while another holds it.

    ``travels``: another process may take it on, so that it does not end with this one.
    """
    state = _state(uri)
    if not state.free:
        return None
    owner = str(os.getpid()) if travels else this_process()
    claim = Claim(uri=uri, number=state.number + 1, owner=f"{owner}/{uuid.uuid4().hex[:12]}")
    return claim if storage.create_file(_file(uri, claim.number), _body(claim.owner, time.time() + lease_s)) else None


def check(claim: Claim) -> None:
    """Raises ClaimLostError when another has it."""
    state = _state(claim.uri)
    if state.number != claim.number:
        raise ClaimLostError(f"{claim.uri}: the claim ran out and {state.owner} took it over")


def renew(claim: Claim, lease_s: float = LEASE_S) -> None:
    """Hold the claim for ``lease_s`` seconds from now.

    Raises:
        ClaimLostError: another has it.
    """
    check(claim)
    storage.write_bytes(_file(claim.uri, claim.number), _body(claim.owner, time.time() + lease_s))


def release(claim: Claim) -> None:
    """End a claim; nothing happens when another has it already."""
    if _state(claim.uri).number == claim.number:
        storage.write_bytes(_file(claim.uri, claim.number), _body(claim.owner, 0.0))


@contextmanager
def kept(claim: Claim | None, lease_s: float = LEASE_S) -> Iterator[None]:
    """Renew the claim while the body runs. It is released when the body fails; else the next task has time to take it on.

    Raises:
        ClaimLostError: another has it, at the start or at the end.
    """
    if claim is None:
        yield
        return
    renew(claim, lease_s)
    done = threading.Event()
    thread = threading.Thread(target=_renew_until, args=(claim, lease_s, done), daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        done.set()
        thread.join()
        release(claim)
        raise
    done.set()
    thread.join()
    renew(claim, HANDOVER_S)


def _renew_until(claim: Claim, lease_s: float, done: threading.Event) -> None:
    while not done.wait(lease_s / 4):
        try:
            renew(claim, lease_s)
        except ClaimLostError:
            return
        except Exception:  # noqa: BLE001 - storage that is away for a moment; the lease has room for three more tries
            continue


@contextmanager
def exclusive(uri: str, timeout_s: float = math.inf, poll_s: float = 0.2) -> Iterator[Claim]:
    """Wait for the claim, hold it while the body runs, release it.

    Raises:
        TimeoutError: it was never free. ClaimLostError: the body took longer than it could be held.
    """
    deadline, told = time.monotonic() + timeout_s, False
    while (claim := take(uri, travels=False)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{uri} was held by {_state(uri).owner} for {timeout_s:.0f} s: see whether that still runs")
        if not told:
            log.warning("%s is at work on %s; waiting for it", _state(uri).owner.rpartition("/")[0], uri.removesuffix(".claim"))
            told = True
        time.sleep(poll_s)
    with kept(claim):
        yield claim
    release(claim)
