"""What MLflow missed: kept in the home folder while the server is away, delivered by the next start or the report, once.

A debt is one run that could not be written whole: what it takes to make the run, its undelivered metrics with the times they
had (so that MLflow keeps one of each, however often they come), and the status it is to end with.
"""

import fcntl
import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bard_core.store import storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Debt:
    """An unfinished run; ``metrics`` are (key, value, time in ms, step)."""

    tracking_uri: str
    experiment: str
    run_id: str | None
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[tuple[str, float, int, int]]
    status: str


def _folder() -> Path:
    return storage.home() / "undelivered"


def owe(debt: Debt) -> None:
    """Keep a debt for later."""
    body = json.dumps(asdict(debt), indent=2) + "\n"
    storage.write_bytes(str(_folder() / f"{uuid.uuid4().hex}.json"), body.encode())


def owed() -> dict[Path, Debt]:
    """All debts, by their files. A file that is no debt is set aside, once, with a message."""
    found = {}
    for path in sorted(_folder().glob("*.json")):
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            found[path] = Debt(**{**body, "metrics": [tuple(metric) for metric in body["metrics"]]})
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError) as error:
            path.rename(path.with_suffix(".damaged"))
            log.warning("%s is no undelivered run (%s): set aside as .damaged; the training curves have its numbers", path, error)
    return found


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One process of this home at a time."""
    with (storage.home() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
