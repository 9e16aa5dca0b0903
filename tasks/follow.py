"""What the driver sees of a training run while Ray trains it: its curve, as a bar and in MLflow, and whether Ray still lives."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

from bard_core.progress import Bar
from bard_core.store import storage
from bard_core.tracking import StageRun
from bard_core.training.curve import CURVE, Record, read_curve
from bard_core.training.notices import take_notices

VITAL = ("raylet", "gcs_server")  # without its other processes Ray goes on
STALL_S = 30.0  # without a step, while something of Ray is dead
NOTICES_S = 5.0  # between two looks at what workers have to say


class Follower:
    """Shows a run's curve as a bar, with what its workers have to say, and sends it to MLflow, every point once.

    A look that fails is made up for by the next.
    """

    def __init__(self, run_uri: str, name: str, steps: int, run: StageRun) -> None:
        self._uri, self._run, self._seen = storage.join(run_uri, CURVE), run, 0.0
        self._run_uri, self._noticed = run_uri, 0.0
        self._bar = Bar(total=steps, desc=f"{name:<10}", unit="step")
        self._found = -1.0

    def look(self) -> int:
        """Send what is new; returns the newest step."""
        if time.monotonic() - self._noticed > NOTICES_S:
            self._tell()
        try:
            records = read_curve(self._uri)
        except (storage.StorageError, ValueError) as error:
            self._bar.write(f"the curve cannot be read now ({error}); training goes on")
            return int(self._seen)
        for record in records:
            self._take(record)
        return int(self._seen)

    def begin(self) -> int:
        """Training starts now, behind the steps of earlier starts, which are no speed of this one; returns the newest step."""
        self._found = self._bar.initial = float(self.look())
        return int(self._found)

    def close(self) -> None:
        """The last look, which must succeed: a run is FINISHED with all its points.

        Raises:
            StorageError: the curve cannot be read.
        """
        try:
            self._tell()
            for record in read_curve(self._uri):
                self._take(record)
        finally:
            self._bar.close()

    def _tell(self) -> None:
        self._noticed = time.monotonic()
        for notice in take_notices(self._run_uri):
            self._bar.write(notice, file=sys.stderr)

    def _take(self, record: Record) -> None:
        if record["step"] <= self._seen:
            return
        if self._seen == self._found:  # the first step of this start: until now Ray was starting, which is no training
            self._bar.start_t = self._bar.last_print_t = time.time() - record.get("train_s", 0.0)
            self._bar.last_print_n = self._bar.n
        self._seen = record["step"]
        self._run.log_metrics({key: value for key, value in record.items() if key != "step"}, step=int(self._seen))
        self._bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
        self._bar.update(int(self._seen) - self._bar.n)


class Watchdog:
    """Bites when something of Ray is dead and the curve has stood still for ``stall_s``: Ray may wait for it for ever."""

    def __init__(self, stall_s: float = STALL_S) -> None:
        self._stall_s, self._step = stall_s, -1
        self._moved = self._asked = time.monotonic()
        self._answer: list[Any] = []

    def look(self, step: int) -> str | None:
        """What is dead, once that is why nothing moves; None while all is well."""
        now = time.monotonic()
        if step != self._step:
            self._step, self._moved = step, now
        if now - self._moved < self._stall_s:
            self._asked, self._answer = now, []
            return None
        return local_ray_trouble() or self._cluster_trouble(now)

    def _cluster_trouble(self, now: float) -> str | None:
        """Ray's own list of nodes; it is asked for in a thread, because a dead head never answers."""
        if not self._answer:
            self._asked, self._answer = now, [None]
            threading.Thread(target=self._ask, args=(self._answer,), daemon=True).start()
        if self._answer == [None]:
            return f"Ray's head did not answer for {self._stall_s:.0f} s" if now - self._asked > self._stall_s else None
        answer, self._answer = self._answer[0], []
        return answer or None

    @staticmethod
    def _ask(answer: list[Any]) -> None:
        import ray

        dead = [node["NodeManagerHostname"] for node in ray.nodes() if not node["Alive"]]
        answer[0] = f"Ray lost its node {dead[0]}" if dead else ""


def local_ray_trouble() -> str | None:
    """What is dead of a Ray that this process started; None when all lives, or when Ray is another's."""
    from ray._private import worker

    node = worker._global_node
    if node is None or not node.head:
        return None
    if dead := [kind for kind, _ in node.dead_processes() if kind in VITAL]:
        return f"Ray's {dead[0]} died"
    if not Path(node.get_session_dir_path()).is_dir():
        return f"Ray's session folder {node.get_session_dir_path()} is gone"
    return None
