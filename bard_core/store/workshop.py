"""Where artifacts are made before they are committed: a scratch folder each, swept when its maker is dead."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from bard_core.store import storage
from bard_core.store.hiccups import persistent

OLD_S = 60.0  # a scratch folder younger than this may not be locked yet


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A new folder of the home to make an artifact in, its own even when another process makes the same; gone afterwards.

    Its maker holds a lock on it, which ends with the maker: see ``sweep_scratch``.
    """
    workshop = storage.home() / "staging"
    with persistent(str(workshop)):
        workshop.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=workshop))
        lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a disk without locks: nobody sweeps there either
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch() -> list[str]:
    """Remove the scratch folders whose makers are dead; returns their names."""
    swept = []
    for folder in sorted((storage.home() / "staging").glob("*-*")):
        try:
            lock = os.open(folder, os.O_RDONLY)
        except OSError:
            continue  # gone in the meantime, or no folder
        try:
            if time.time() - os.fstat(lock).st_ctime < OLD_S:
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder.name)
        except OSError:
            continue  # in use
        finally:
            os.close(lock)
    return swept


def replace_folder(staging: Path, target: Path) -> None:
    """Make the local folder ``staging`` be ``target``: brought beside it (copied when on another disk), then renamed.

    Whatever ``target`` was is gone afterwards. A failure puts both back and is raised.
    """
    sibling = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    doomed = target.with_name(f".{target.name}.old.{uuid.uuid4().hex}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.move(staging, sibling)
    except BaseException:
        if staging.exists():
            shutil.rmtree(sibling, ignore_errors=True)
        raise
    while True:
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, doomed)
        try:
            os.rename(sibling, target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(doomed, target)
                shutil.move(sibling, staging)
                raise
            shutil.rmtree(doomed, ignore_errors=True)  # another process put its folder there in between: replace that
    shutil.rmtree(doomed, ignore_errors=True)
