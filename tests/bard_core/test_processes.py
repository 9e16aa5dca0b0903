"""A pool has all its processes before anything watches them, and says so when one dies."""

import os
import signal
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children

import pytest

from bard_core.processes import process_pool


def test_all_processes_start_with_the_first_call() -> None:
    before = len(active_children())
    with process_pool(3, "json") as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        assert len(active_children()) == before + 3


def test_one_that_is_killed_breaks_the_pool_and_leaves_nothing_behind() -> None:
    before = active_children()
    for _ in range(5):
        with process_pool(3, "json") as pool, pytest.raises(BrokenProcessPool):
            for future in [pool.submit(signal.raise_signal, signal.SIGKILL) for _ in range(6)]:
                future.result()
    assert active_children() == before
