"""What a user sees: `make ui`, the MLflow page in a real browser, checkpoints and their scores side by side."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bard_core import tracking
from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.config.sections.storage import TrackingConfig
from bard_core.report import leaderboard

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow


def judged(judge: Any) -> TrackingConfig:
    """A home's MLflow with four checkpoints and their scores."""
    config, evaluation = TrackingConfig(), EvaluationConfig()
    judge.register(config, evaluation, judge.source, right=988, speedup=1.0)
    for stage, block_size, right, speedup in (("pbm", 4, 921, 1.75), ("pbm", 16, 593, 3.125), ("swd", 16, 807, 3.0)):
        judge.register(config, evaluation, judge.model(stage, block_size), right=right, speedup=speedup)
    return config


def test_the_models_page_of_make_ui_shows_checkpoints_and_scores_side_by_side(
    bard_home: Path, judge: Any, browser: Any, tmp_path: Path
) -> None:
    config = judged(judge)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recipe = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "ui", f"PORT={port}", f"VENV={sys.prefix}"], capture_output=True, text=True
    )
    line = next(line for line in recipe.stdout.splitlines() if " ui --port" in line)
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(["bash", "-c", f"exec {line}"], env=environment, start_new_session=True)
    try:

        def up() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
            return False

        browser.until("make ui", up)
        browser.resize(6000)  # the table draws only the columns that fit
        browser.open(f"http://127.0.0.1:{port}/{tracking.comparison_page(config)}")
        wanted = ("source", "pbm-b4", "pbm-b16", "swd-b16", "0.988", "0.921", "0.593", "0.807")
        browser.until(f"a page with {wanted}", lambda: all(word in browser.text() for word in wanted))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_the_leaderboard_opens_and_sorts(bard_home: Path, judge: Any, browser: Any, tmp_path: Path) -> None:
    (path, _) = leaderboard.write(judged(judge), tmp_path)
    browser.open(path.as_uri())
    browser.until("the page", lambda: "4 checkpoints" in browser.text())
    names = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[0].innerText)"
    column = "[...document.querySelectorAll('th')].find(th => th.innerText === 'speedup')"
    assert browser.run(names) == ["source", "pbm-b4", "pbm-b16", "swd-b16"]
    browser.run(f"{column}.click()")
    assert browser.run(names) == ["pbm-b16", "swd-b16", "pbm-b4", "source"]
    browser.run(f"{column}.click()")
    assert browser.run(names) == ["source", "pbm-b4", "swd-b16", "pbm-b16"]
