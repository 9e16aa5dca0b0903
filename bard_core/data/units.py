"""The units of a dataset on this node: fetched when first asked for, hashed once a node, evicted when the cache is full.

Each unit has a lock file in the home folder, which all processes of the node share. It holds what was verified (path, size and
time of change of the rows' file), and its own time of change says when the unit was last opened. A file that changed is
verified again.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from bard_core.data.index import UNITS_FILE, Unit
from bard_core.store import artifacts, storage

ROWS = "rows.arrow"
CACHE_BYTES = 100 * 2**30


def units_uri(dataset_uri: str) -> str:
    """Where the units of a dataset stand: beside it, so that a copy of both is the same dataset."""
    return storage.join(dataset_uri.rstrip("/").rpartition("/")[0], "units")


def lacking(dataset_uri: str) -> list[str]:
    """Names of the units that a dataset has in its list and not beside it: deleted, or set aside as damaged."""
    there = set(storage.list_folders(units_uri(dataset_uri)))
    wanted = [entry["name"] for entry in json.loads(storage.read_bytes(storage.join(dataset_uri, UNITS_FILE)))]
    return [name for name in wanted if name not in there]


class Units:
    """Verified units by their place in ``units.json``. Those of a local dataset are read where they are.

    Args:
        cache_bytes: what units fetched from elsewhere may take on this node's disk; the least recently opened go first.
    """

    def __init__(self, dataset_uri: str, units: Sequence[Unit], cache_bytes: int = CACHE_BYTES) -> None:
        self.uri, self.units, self.cache_bytes = units_uri(dataset_uri), units, cache_bytes

    @contextlib.contextmanager
    def held(self, place: int) -> Iterator[Path]:
        """The rows' file of a unit. While the context is open nobody evicts it; what is mapped by then stays readable.

        Raises:
            ArtifactError, StorageError: the unit is missing, torn or changed.
        """
        unit = self.units[place]
        with _locked(_folder() / unit.manifest_sha256) as lock:
            assert lock is not None
            path = _remembered(lock)
            if path is None:
                path = artifacts.fetch(storage.join(self.uri, unit.name), unit.manifest_sha256) / ROWS
                _remember(lock, path)
            os.utime(lock)
            yield path
        self._evict()

    def fetch(self, place: int) -> None:
        """Have a unit ready for ``held``."""
        with self.held(place):
            pass

    def _evict(self) -> None:
        """Remove units from the cache, least recently opened first, until they fit; one that is held elsewhere stays."""
        if storage.is_local(self.uri):
            return
        locks = sorted(_folder().iterdir(), key=lambda lock: lock.stat().st_mtime)
        cached = {lock: path for lock in locks if (path := _remembered(lock)) and path.is_relative_to(storage.home() / "cache")}
        excess = sum(path.stat().st_size for path in cached.values()) - self.cache_bytes
        for victim, path in list(cached.items())[:-1]:
            if excess <= 0:
                return
            with _locked(victim, wait=False) as lock:
                if lock is not None and path.exists():
                    excess -= path.stat().st_size
                    lock.write_bytes(b"")
                    shutil.rmtree(path.parent)


def _folder() -> Path:
    folder = storage.home() / "units"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[Path | None]:
    """Hold a lock file alone; None when it is taken and we do not ``wait``. A killed process holds nothing."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield path


def _remember(lock: Path, rows: Path) -> None:
    status = rows.stat()
    lock.write_text(f"{status.st_size} {status.st_mtime_ns} {rows}", encoding="utf-8")


def _remembered(lock: Path) -> Path | None:
    """The rows' file that was verified, if it still is what it was."""
    size, _, rest = lock.read_text(encoding="utf-8").partition(" ")
    changed, _, name = rest.partition(" ")
    path = Path(name)
    try:
        status = path.stat()
    except OSError:
        return None
    return path if name and (str(status.st_size), str(status.st_mtime_ns)) == (size, changed) else None
