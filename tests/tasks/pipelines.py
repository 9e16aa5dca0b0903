"""Whole pipelines as processes that can be signalled: ``pyflyte run`` of a tiny configuration, with a home of its own."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
PYFLYTE = Path(sys.executable).parent / "pyflyte"


class Pipeline:
    """One ``pyflyte run``, in a session of its own, as a shell with job control would start it."""

    def __init__(self, home: Path, config: dict[str, Any]) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        path = home.with_suffix(f".{time.monotonic_ns()}.yaml")
        path.write_text(yaml.safe_dump(config))
        self.log = home.with_suffix(f".{time.monotonic_ns()}.log")
        self.temp = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        environment = {
            **os.environ,
            "BARD_HOME": str(home),
            "FLYTE_SDK_LOCAL_SANDBOX": str(home / "flyte" / "sandbox"),
            "FLYTE_LOCAL_CACHE_ENABLED": "true",
            "RAY_TMPDIR": self.temp,
            "RAY_raylet_start_wait_time_s": "240",
        }
        command = [str(PYFLYTE), "run", str(ROOT / "workflows" / "pipeline.py"), "bard_pipeline", "--inputs-file", str(path)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=home)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, timeout_s: float = 400.0) -> None:
        """Until the log has the words, or the process is done."""
        deadline = time.monotonic() + timeout_s
        while words not in self.text and self.process.poll() is None:
            assert time.monotonic() < deadline, f"waited for {words!r}:\n{self.text[-4000:]}"
            time.sleep(0.1)
        assert words in self.text, self.text[-4000:]

    def signal(self, number: int, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def finish(self, timeout_s: float = 600.0) -> int:
        try:
            return self.process.wait(timeout_s)
        finally:
            self.end()

    def end(self) -> None:
        """kill -9 for the process and all that it started, wherever that is."""
        if self.process.poll() is None:
            family = self.family()
            self.process.kill()
            for child in family:
                with_suppressed(child)
            self.process.wait()


def with_suppressed(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return
