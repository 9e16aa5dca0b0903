"""sqlite files that caches and indexes keep: what is damaged is set aside, and its owner begins a new one."""

import logging
import os
import sqlite3
from pathlib import Path

log = logging.getLogger(__name__)


def set_aside_if_damaged(database: Path, kept: Path, what: str) -> bool:
    """Rename ``kept``, the database's file or folder, to ``….damaged`` where sqlite finds the database damaged, and say so.

    ``what`` says what it is and what becomes of what it held.
    """
    fault = _fault(database)
    if fault is None:
        return False
    target, number = kept.with_name(f"{kept.name}.damaged"), 1
    while target.exists():
        number += 1
        target = kept.with_name(f"{kept.name}.damaged-{number}")
    os.rename(kept, target)
    for tail in ("-wal", "-shm", "-journal"):  # of the old file: they would be played into the new one
        if (beside := Path(f"{database}{tail}")).exists():
            os.rename(beside, f"{target}{tail}")
    log.warning("%s: %s; it was set aside as %s. %s", kept, fault, target, what)
    return True


def _fault(database: Path) -> str | None:
    """What is wrong with a database; None when nothing is, when there is none, and when another holds it."""
    if not database.is_file() or database.stat().st_size == 0:
        return None
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)
        try:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.OperationalError as error:  # locked, or no right to read: its owner will say so
        return str(error) if "disk image is malformed" in str(error) else None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if said == "ok" else str(said)
