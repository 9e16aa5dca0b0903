"""Claims: one holder at a time, whatever happens to the one before."""

import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bard_core.store import claims, storage


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "claims") if request.param == "local" else request.getfixturevalue("s3_root") + "/claims"


def test_of_many_at_once_one_gets_it(place: str) -> None:
    gate = threading.Barrier(8)

    def take(_: int) -> claims.Claim | None:
        gate.wait()
        return claims.take(place)

    with ThreadPoolExecutor(8) as pool:
        got = [claim for claim in pool.map(take, range(8)) if claim is not None]
    assert len(got) == 1
    assert claims.take(place) is None
    claims.release(got[0])
    again = claims.take(place)
    assert again is not None and again.number == 2
    claims.release(got[0])  # of old: changes nothing
    assert claims.take(place) is None


def test_a_dead_holder_is_replaced_and_finds_out(tmp_path: Path) -> None:
    place = str(tmp_path)
    dead = claims.take(place, lease_s=0.05)
    assert dead is not None
    time.sleep(0.06)
    heir = claims.take(place)
    assert heir is not None
    with pytest.raises(claims.ClaimLostError, match=heir.owner):
        claims.renew(dead)
    with pytest.raises(claims.ClaimLostError), claims.kept(dead):
        pytest.fail("the body must not run")
    assert claims.take(place) is None


def test_a_claim_is_kept_while_work_runs_and_freed_when_it_fails(tmp_path: Path) -> None:
    place = str(tmp_path)
    claim = claims.take(place)
    assert claim is not None
    with pytest.raises(ZeroDivisionError), claims.kept(claim, lease_s=0.2):
        time.sleep(0.5)
        assert claims.take(place) is None, "renewed meanwhile"
        raise ZeroDivisionError
    claim = claims.take(place)
    assert claim is not None
    with claims.kept(claim, lease_s=0.2):
        pass
    time.sleep(0.25)
    assert claims.take(place) is None, "the next task has time to start"


def test_exclusive_work_never_overlaps(tmp_path: Path) -> None:
    inside: list[int] = []
    most: Counter[int] = Counter()

    def work(index: int) -> None:
        with claims.exclusive(str(tmp_path), poll_s=0.01):
            inside.append(index)
            most[len(inside)] += 1
            time.sleep(0.01)
            inside.remove(index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert most == {1: 8}
    assert claims.take(str(tmp_path)) is not None
    with pytest.raises(TimeoutError, match="was held by"), claims.exclusive(str(tmp_path), timeout_s=0.05):
        pytest.fail("the body must not run")


def test_a_file_is_created_whole_or_not_at_all(place: str) -> None:
    assert storage.create_file(storage.join(place, "a"), b"first")
    assert not storage.create_file(storage.join(place, "a"), b"second")
    assert storage.read_bytes(storage.join(place, "a")) == b"first"
    assert storage.list_files(place) == ["a"]


HOLD = """
import sys, time
from bard_core.store import claims
with claims.exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_holder_killed_on_this_machine_is_replaced_at_once(place: str) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, place], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert claims.take(place) is None
    holder.kill()
    holder.wait()
    with claims.exclusive(place, timeout_s=5.0) as claim:
        assert claim.number == 2


def test_a_claim_that_travels_outlives_the_process_that_took_it(tmp_path: Path) -> None:
    code = f"from bard_core.store import claims; assert claims.take({str(tmp_path)!r}) is not None"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert claims.take(str(tmp_path)) is None
