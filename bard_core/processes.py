"""Pools of processes that outlive the death of one: the next call finds the pool broken, and nothing waits forever."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


def process_pool(processes: int, preload: str, **how: Any) -> ProcessPoolExecutor:
    """A pool whose processes are forked from a server that has imported ``preload``; they all start with the first call.

    As Python has it, each call starts one more. One started while the pool is taken down, because another was killed, is never
    ended, and the pool waits for it.

    Args:
        how: ``initializer`` and ``initargs``, as of ``ProcessPoolExecutor``.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([preload])
    pool = ProcessPoolExecutor(processes, mp_context=context, **how)
    pool._safe_to_dynamically_spawn_children = False  # type: ignore[attr-defined]  # as Python itself says of plain forks
    return pool
