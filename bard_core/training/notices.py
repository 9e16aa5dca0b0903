"""What a run's workers have to say: their warnings, left in the run's folder, shown by the driver that watches it.

Ray keeps its workers' logs on their own machines. A damaged artifact that was set aside, a checkpoint that could not be written,
a sample that was left out is for the one who started the run.
"""

import logging
import threading
import time
import uuid
from contextlib import suppress

from bard_core.store import storage

FOLDER = "notices"


class Notices(logging.Handler):
    """Leaves every warning and error below ``<run>/notices``, one file each. What a place that is away loses, the log has."""

    def __init__(self, run_uri: str) -> None:
        super().__init__(logging.WARNING)
        self._uri = storage.join(run_uri, FOLDER)
        self._writing = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self._writing, "now", False):
            return  # a warning about the writing itself
        self._writing.now = True
        try:
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
            storage.write_bytes(storage.join(self._uri, name), record.getMessage().encode())
        except Exception:  # noqa: BLE001 - a message is no reason to stop a training
            self.handleError(record)
        finally:
            self._writing.now = False


def leave_notices(run_uri: str) -> None:
    """Leave every warning of this process from now on, whoever says it: we, a package underneath, or Python itself."""
    logging.captureWarnings(True)
    logging.getLogger().addHandler(Notices(run_uri))
    if not (theirs := logging.getLogger("transformers")).propagate:  # it keeps its records to itself, but not where CI is set
        theirs.addHandler(Notices(run_uri))


def take_notices(run_uri: str) -> list[str]:
    """The notices that nobody took yet, oldest first. None is lost: a place that is away is asked again at the next look."""
    uri, taken = storage.join(run_uri, FOLDER), []
    with suppress(storage.StorageError):
        for name in storage.list_files(uri):
            if not name.startswith("."):
                taken.append(storage.read_bytes(storage.join(uri, name)).decode())
                storage.delete_file(storage.join(uri, name))
    return taken
