"""Disks that are full, limited, read-only or refuse: a save fails once, what was whole stays, and the next save goes through."""

import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from bard_core.training.checkpoints.writer import CheckpointError, Run, Writer

from .conftest import ORIGIN
from .test_writer import names, restored, toy


def fails_once_then_recovers(run, broken, mended, message, caplog):
    """A save that fails is said and survived; the next works; two in a row, or the last, stop the run. Nothing whole is lost."""
    objective, optimizer = toy()
    writer = Writer(run, objective, optimizer)
    writer.save(1)
    writer._settle()
    broken()
    try:
        writer.save(2)
        writer._settle()
        assert message in caplog.text and "the one before it is still whole" in caplog.text
        writer.save(3)
        with pytest.raises(CheckpointError, match=message):
            writer.save(4)
        with pytest.raises(CheckpointError, match=message):
            writer.close()
    finally:
        mended()
    assert restored(run)[0] == 1 and names(run) == ["step-000001"]
    writer = Writer(run, objective, optimizer)
    writer.save(4)
    writer.close()
    assert restored(run)[0] == 4


def test_disk_full(tmp_path, bard_home, caplog, faults):
    """A real one: a file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        run = Run(str(place / "run"), ORIGIN)
        filler = place / "filler"

        def fill():
            with pytest.raises(OSError, match="No space left"):
                filler.write_bytes(b"\0" * 4_000_000)

        fails_once_then_recovers(run, fill, filler.unlink, "No space left on device", caplog)
        assert f"no room in {place}" in caplog.text and "bytes are free" in caplog.text and "are needed" in caplog.text
        faults.survived("a full disk under checkpoints", "told in bytes, the one before is whole, goes on once there is room")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_file_size_limit(run, caplog):
    """What a quota does: the write itself fails, in the middle of a shard."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        fails_once_then_recovers(
            run,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1])),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before),
            "File too large",
            caplog,
        )
    finally:
        signal.signal(signal.SIGXFSZ, ignored)


def test_read_only_folder(tmp_path, bard_home, caplog):
    """A real one: root writes into folders without permission, but not onto a read-only mount."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        remount = ["mount", "-o"]
        fails_once_then_recovers(
            Run(str(place / "run"), ORIGIN),
            lambda: subprocess.run([*remount, "remount,ro", str(place)], check=True),
            lambda: subprocess.run([*remount, "remount,rw", str(place)], check=True),
            "Read-only file system",
            caplog,
        )
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_failing_rename(run, caplog, monkeypatch):
    rename = os.rename
    broken = []

    def refuses(source, target, *args, **kwargs):
        if broken and Path(target).name.startswith("step-"):
            raise PermissionError(1, "Operation not permitted")
        return rename(source, target, *args, **kwargs)

    monkeypatch.setattr(os, "rename", refuses)
    fails_once_then_recovers(run, lambda: broken.append(1), broken.clear, "Operation not permitted", caplog)
