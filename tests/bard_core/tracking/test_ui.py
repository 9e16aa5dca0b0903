"""What a user sees: `make ui`, the MLflow page in a real browser, checkpoints and their scores side by side.

With BARD_SCREENSHOT=<file.png> the page seen is kept, for docs/.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bard_core import tracking
from bard_core.config.sections import EvaluationConfig, TrackingConfig
from bard_core.report import leaderboard

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser here: apt-get install chromium"),
]


class Browser:
    """A headless browser, spoken to through its DevTools port."""

    def __init__(self, folder: Path) -> None:
        from websocket import create_connection

        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --hide-scrollbars --window-size=1700,520 --remote-debugging-port=0"
        )
        command = [str(CHROMIUM), *flags.split(), "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"]
        self.program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = folder / "DevToolsActivePort"
        until("the browser", lambda: port_file.exists() and port_file.read_text().strip())
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        self.socket = create_connection(page["webSocketDebuggerUrl"], timeout=120, suppress_origin=True)
        self.count = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def run(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def resize(self, width: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=560, deviceScaleFactor=1, mobile=False)

    def text(self) -> str:
        return str(self.run("document.body.innerText"))

    def close(self) -> None:
        self.socket.close()
        self.program.terminate()
        self.program.wait(30)


def until(what: str, ready: Any, seconds: float = 400.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.3)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def judged(judge: Any) -> TrackingConfig:
    """A home's MLflow with four checkpoints and their scores."""
    config, evaluation = TrackingConfig(), EvaluationConfig()
    judge.register(config, evaluation, judge.source, right=988, speedup=1.0)
    for stage, block_size, right, speedup in (("pbm", 4, 921, 1.75), ("pbm", 16, 593, 3.125), ("swd", 16, 807, 3.0)):
        judge.register(config, evaluation, judge.model(stage, block_size), right=right, speedup=speedup)
    return config


def test_the_models_page_of_make_ui_shows_checkpoints_and_scores_side_by_side(
    bard_home: Path, judge: Any, browser: Browser, tmp_path: Path
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

        until("make ui", up)
        browser.resize(6000)  # the table draws only the columns that fit
        browser.call("Page.navigate", url=f"http://127.0.0.1:{port}/{tracking.comparison_page(config)}")
        wanted = ("source", "pbm-b4", "pbm-b16", "swd-b16", "0.988", "0.921", "0.593", "0.807")
        until(f"a page with {wanted}", lambda: all(word in browser.text() for word in wanted))
        if (path := os.environ.get("BARD_SCREENSHOT")) is not None:
            browser.resize(2500)
            browser.run("document.querySelectorAll('.ag-body-horizontal-scroll-viewport').forEach(bar => bar.scrollLeft = 750)")
            time.sleep(3)
            Path(path).write_bytes(base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"]))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_the_leaderboard_opens_and_sorts(bard_home: Path, judge: Any, browser: Browser, tmp_path: Path) -> None:
    (path, _) = leaderboard.write(judged(judge), tmp_path)
    browser.call("Page.navigate", url=path.as_uri())
    until("the page", lambda: "4 checkpoints" in browser.text())
    names = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[0].innerText)"
    column = "[...document.querySelectorAll('th')].find(th => th.innerText === 'speedup')"
    assert browser.run(names) == ["source", "pbm-b4", "pbm-b16", "swd-b16"]
    browser.run(f"{column}.click()")
    assert browser.run(names) == ["pbm-b16", "swd-b16", "pbm-b4", "source"]
    browser.run(f"{column}.click()")
    assert browser.run(names) == ["source", "pbm-b4", "swd-b16", "pbm-b16"]
