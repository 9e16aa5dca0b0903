"""Pictures of docs/ from what a demo has left in BARD_HOME: its report's frontier, and MLflow's page of models.

make demo && .venv/bin/python docs/screenshots.py
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import CHROMIUM, Browser

from bard_core.store import storage

DOCS = Path(__file__).resolve().parent
CLOSE_THE_ASSISTANT = "[...document.querySelectorAll('button[aria-label]')].find(b => /close/i.test(b.ariaLabel))?.click()"
SCROLLED_TO_SCORES = "document.querySelectorAll('.ag-body-horizontal-scroll-viewport').forEach(bar => bar.scrollLeft = 750)"


def newest_report(home: Path) -> Path:
    """Raises FileNotFoundError: no demo has come to its end there."""
    found = sorted(home.glob("artifacts/report/*/report.html"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"{home} holds no report: run make demo to its end first")
    return found[-1].parent


def of_mlflow(browser: Browser, names: list[str], out: Path) -> None:
    """``bard ui``, with all checkpoints of the home and their scores in the table."""
    command = [sys.executable, "-m", "bard_core.cli.main", "ui", "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    try:
        assert server.stdout is not None
        said = ""
        while not (address := re.search(r"MLflow: (\S+)", said)):
            said += server.stdout.readline() or sys.exit("bard ui ended without an address")
        browser.resize(6000)  # the table draws only the columns that fit

        def shown() -> bool:
            browser.open(address[1])  # again: it is told before the server listens
            time.sleep(3)
            return all(name in browser.text() for name in names)

        browser.until(f"a page with {', '.join(names)}", shown)
        browser.resize(2500)
        browser.run(CLOSE_THE_ASSISTANT)
        browser.run(SCROLLED_TO_SCORES)
        time.sleep(3)
        browser.picture(out / "mlflow.png")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS)
    out: Path = parser.parse_args().out
    if CHROMIUM is None:
        sys.exit("no browser here: apt-get install chromium")
    report = newest_report(storage.home())
    shutil.copyfile(report / "frontier.png", out / "frontier.png")
    judged = json.loads((report / "report.json").read_text(encoding="utf-8"))["rows"]
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            of_mlflow(browser, [row["model"] for row in judged], out)
        finally:
            browser.close()
    print(*(out / name for name in ("frontier.png", "mlflow.png")), sep="\n")


if __name__ == "__main__":
    main()
