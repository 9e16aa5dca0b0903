"""Damaged sqlite files are set aside, whatever the damage; whole and busy ones stay."""

import os
import sqlite3
from pathlib import Path

import pytest

from bard_core.store import databases


def make(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [("word" * 100,)] * 2000)
    connection.close()


def overwrite(path: Path, start: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\x7f" * length)


DAMAGE = {
    "its first page": lambda path: overwrite(path, 0, 4096),
    "a page in the middle": lambda path: overwrite(path, 40_960, 8192),
    "its end cut off": lambda path: os.truncate(path, 100_000),
    "other bytes": lambda path: path.write_bytes(b"no database at all" * 999),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_set_aside_and_told(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mlflow.db"
    for name in ("mlflow.db.damaged", "mlflow.db.damaged-2"):
        make(path)
        DAMAGE[damage](path)
        body = path.read_bytes()
        assert databases.set_aside_if_damaged(path, path, "It begins anew")
        assert not path.exists() and (tmp_path / name).read_bytes() == body
        assert f"it was set aside as {tmp_path / name}. It begins anew" in caplog.text


def test_whole_missing_empty_and_busy_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert not databases.set_aside_if_damaged(path, path, "")
    path.touch()
    assert not databases.set_aside_if_damaged(path, path, "")
    make(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        assert not databases.set_aside_if_damaged(path, path, "")
    finally:
        holder.close()
    assert not databases.set_aside_if_damaged(path, path, "") and path.exists()
