"""Ctrl-C, SIGTERM and SIGTERM to the group through the real ``pyflyte run``: one sentence, exit 75; twice ends at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PYFLYTE = Path(sys.executable).parent / "pyflyte"
WORKFLOW = """
import time
from flytekit import dynamic, map_task, workflow
from tasks import stopping
from tasks.settings import stage_task

def work(x: int) -> int:
    try:
        print("at work", flush=True)
        time.sleep({sleep})
    finally:
        time.sleep({tidying})
    return x

@stage_task("prepare", "prepare")
def prepare(x: int) -> int:
    return work(x)

@stage_task("evaluate", "evaluate")
def judge_benchmark(x: int) -> int:
    return work(x)

@stage_task("train", "control")
def pbm(x: int) -> int:
    with stopping.deferred("pbm-b4"):
        print("at work", flush=True)
        while not stopping.asked():
            time.sleep(0.05)
        time.sleep({tidying})
    stopping.leave("stopped at step 312 of 700")
    return x

@dynamic
def convert(x: int) -> list[int]:
    return map_task(judge_benchmark, min_success_ratio=1e-9)(x=[x, x])

@workflow
def alone() -> int:
    return prepare(x=1)

@workflow
def mapped() -> list[int]:
    return convert(x=1)

@workflow
def training() -> int:
    return pbm(x=1)
"""


def start(folder: Path, workflow: str, sleep: float = 600.0, tidying: float = 0.0) -> "subprocess.Popen[str]":
    (folder / "flow.py").write_text(WORKFLOW.format(sleep=sleep, tidying=tidying))
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "BARD_HOME": str(folder / "home")}
    process = subprocess.Popen(
        [str(PYFLYTE), "run", "flow.py", workflow], cwd=folder, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    while (line := process.stdout.readline()) and "at work" not in line:
        pass
    return process


WAYS = {
    "Ctrl-C": (signal.SIGINT, os.killpg),
    "SIGTERM": (signal.SIGTERM, os.kill),
    "SIGTERM to the group": (signal.SIGTERM, os.killpg),
}
SENTENCES = {"alone": "stopped in prepare", "mapped": "stopped in judge benchmark", "training": "stopped at step 312 of 700"}
CASES = [
    pytest.param(
        way, stage, marks=[] if (way, stage) in {("Ctrl-C", "mapped"), ("SIGTERM", "training")} else [pytest.mark.faults]
    )
    for way in WAYS
    for stage in SENTENCES
]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "stage"), CASES)
def test_one_sentence_and_exit_75(way: str, stage: str, tmp_path: Path, faults: Any) -> None:
    number, send = WAYS[way]
    process = start(tmp_path, stage)
    asked = time.monotonic()
    send(process.pid, number)
    text, _ = process.communicate(timeout=90)
    assert process.returncode == 75 and time.monotonic() - asked < 60, text
    assert text.count("run the same command to go on") == 1 and SENTENCES[stage] in text and "Traceback" not in text, text
    faults.survived(f"{way} in a stage", "one sentence, exit 75", times=1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["training", pytest.param("alone", marks=pytest.mark.faults)])
def test_a_second_signal_ends_at_once(stage: str, tmp_path: Path, faults: Any) -> None:
    process = start(tmp_path, stage, tidying=600.0)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(1.0)
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and time.monotonic() - asked < 5 and "ended at once" in text, text
    faults.survived("a second signal", "ended at once, exit 75", times=1)
