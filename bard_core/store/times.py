"""How long each piece of work took when it last ran here, in ``$BARD_HOME/times.json``: what a forecast goes by."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pydantic import BaseModel, ConfigDict, ValidationError

from bard_core.store import storage
from bard_core.store.artifacts import MANIFEST


class Took(BaseModel):
    """``units`` of work (steps of training; 1 for what is done as a whole) in ``seconds``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    units: int = 1

    @property
    def each(self) -> float:
        return self.seconds / self.units


def known() -> dict[str, Took]:
    """By what was done; empty where nothing has run yet, or the file is damaged."""
    try:
        body = json.loads((storage.home_path() / "times.json").read_text(encoding="utf-8"))
        return {name: Took.model_validate(value) for name, value in body.items()}
    except (OSError, ValueError, AttributeError, ValidationError):
        return {}


def note(what: str, seconds: float, units: int = 1) -> None:
    """Remember it; a place that cannot be written is no reason to stop."""
    if units < 1:
        return
    found = {**known(), what: Took(seconds=round(seconds, 3), units=units)}
    body = json.dumps({name: took.model_dump() for name, took in sorted(found.items())}, indent=2)
    with suppress(OSError, storage.StorageError):
        storage.write_bytes(str(storage.home() / "times.json"), body.encode())


@contextmanager
def measured(what: str, uri: str) -> Iterator[None]:
    """Note how long the body took to make the artifact ``uri``; not where it stood there before."""
    stood, started = storage.exists(storage.join(uri, MANIFEST)), time.perf_counter()
    yield
    if not stood:
        note(what, time.perf_counter() - started)
