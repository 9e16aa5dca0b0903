"""Pieces spread over processes: in their order, and none that outlives us."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Value
from pathlib import Path
from typing import Any

import psutil
import pytest
from tqdm import tqdm

from bard_core.config.sections.storage import StorageConfig
from bard_core.findings import pool, work
from bard_core.findings.pieces import distinct, recipe, recipes
from bard_core.store import storage
from bard_core.training.interrupts import EXIT_STOPPED, Stopped

from .tiny import AT, tiny_claim


class SimpleBar:
    """What a bar counts, without its picture."""

    n = 0

    def update(self, by: int) -> None:
        self.n += by

    def set_postfix_str(self, *_: Any, **__: Any) -> None:
        pass


def test_what_is_ready_is_handed_out_and_nothing_before_what_it_needs(monkeypatch: pytest.MonkeyPatch, bard_home: Path) -> None:
    pieces, order = distinct(recipes([tiny_claim()])), list[str]()
    lost = next(key for key, piece in pieces.items() if piece.name == "source, seed 1")

    def run(piece: Any, needed: dict[str, Any], at: StorageConfig, on_step: Callable[[int], None]) -> None:
        assert {*piece.needs} == {*needed} and {*piece.needs} <= {*order}
        if piece.key == lost:
            raise RuntimeError("no luck")
        order.append(piece.key)

    monkeypatch.setattr(pool, "run", run)
    steps = Value("q")
    monkeypatch.setattr(pool, "_steps", steps, raising=False)
    with ThreadPoolExecutor(2) as threads:
        failed = pool._spread(pieces, dict(pieces), AT, tqdm(disable=True), threads, 2, steps)
    assert failed == {f"source, seed 1 ({lost[:8]})": "RuntimeError: no luck"}
    assert {key for key in pieces if key not in order} == {lost, *(k for k, p in pieces.items() if "seed 1" in p.name)}
    assert len(order) == len({*order})


@pytest.mark.parametrize("processes", [1, 2])
def test_the_bar_moves_while_a_training_goes_on(monkeypatch: pytest.MonkeyPatch, bard_home: Path, processes: int) -> None:
    sources = [piece for piece in distinct(recipes([tiny_claim()])).values() if piece.kind == "source"]
    pieces = {piece.key: piece.model_copy(update={"needs": ()}) for piece in sources}
    bar, steps, costs = SimpleBar(), Value("q"), [piece.cost for piece in pieces.values()]
    seen = []

    def run(piece: Any, needed: Any, at: StorageConfig, on_step: Callable[[int], None]) -> None:
        on_step(1)
        until = time.monotonic() + 10
        while bar.n % 2 == 0 and time.monotonic() < until:  # every piece is of two steps
            time.sleep(0.01)
        seen.append(bar.n)

    assert costs == [2, 2]
    monkeypatch.setattr(pool, "run", run)
    monkeypatch.setattr(pool, "_steps", steps, raising=False)
    monkeypatch.setattr(pool, "LOOK_S", 0.01)
    if processes == 1:
        assert pool._one_by_one(pieces, pieces, AT, bar) == {}
    else:
        with ThreadPoolExecutor(1) as threads:
            assert pool._spread(pieces, dict(pieces), AT, bar, threads, 1, steps) == {}
    assert (seen, bar.n) == ([1, 3], 4)


def test_a_training_that_was_told_to_stop_ends_the_run(monkeypatch: pytest.MonkeyPatch, bard_home: Path) -> None:
    pieces, begun = distinct([recipe(tiny_claim(), "four", 0)]), list[str]()

    def run(piece: Any, *_: Any) -> None:
        begun.append(piece.kind)
        if piece.kind == "source":
            raise Stopped(7)

    monkeypatch.setattr(pool, "run", run)
    with pytest.raises(SystemExit) as left:
        pool.run_all(pieces, 1)
    assert (left.value.code, begun) == (EXIT_STOPPED, ["dataset", "source"]), "nothing is begun after it"


@pytest.mark.faults
def test_processes_share_the_work(bard_home: Path) -> None:
    """Real processes, on the quickest pieces there are; the suite has not the time to start them."""
    pieces = distinct([recipe(tiny_claim(), "four", 0)])
    datasets = {key: piece for key, piece in pieces.items() if type(piece).__name__ == "Prepared"}
    assert pool.run_all(datasets, processes=2) == {}
    assert all(work.found(piece, AT) for piece in datasets.values())
    assert (storage.home() / "findings.log").is_file()


FOREVER = """
from tiny import tiny_claim
from bard_core.findings import pool
from bard_core.findings.pieces import distinct, recipes

claim = tiny_claim(seeds=[0, 1, 2, 3])
claim = claim.model_copy(update={"settings": {**claim.settings, "source.train.steps": 10**6}})
pool.run_all(distinct(recipes([claim])), processes=2)
"""


@pytest.mark.faults
def test_no_process_outlives_the_one_that_was_ended(bard_home: Path) -> None:
    """SIGTERM, as a scheduler sends it, in the middle of two trainings without end, while others wait for their turn."""
    running = subprocess.Popen([sys.executable, "-c", FOREVER], cwd=Path(__file__).parent)
    us = psutil.Process(running.pid)
    until = time.monotonic() + 120
    while len(list(bard_home.glob("checkpoints/*/curve.jsonl"))) < 2:
        assert running.poll() is None and time.monotonic() < until
        time.sleep(0.2)
    family = us.children(recursive=True)
    assert len(family) >= 3, "the fork server and its two"
    running.terminate()
    outlived = psutil.wait_procs(family, timeout=60)[1]
    for process in [*outlived, us] if outlived else []:
        process.kill()
    assert (running.wait(60), outlived) == (128 + signal.SIGTERM, [])
