"""ui: MLflow over the home folder, opened where the checkpoints stand side by side."""

import os
import socket
import subprocess
import sys
import threading
import time
from typing import Annotated

import typer

TRIED = 20  # ports looked at, from the one asked for


def add_to(app: typer.Typer) -> None:
    app.command()(ui)


def ui(
    port: Annotated[int, typer.Option(help="where a page is wanted; taken: the next free one")] = 5000,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open it, where there is a screen")] = True,
) -> None:
    """Start MLflow on the runs and models of BARD_HOME and open the comparison of checkpoints.

    Example: bard ui --port 5001
    """
    free = next((number for number in range(port, port + TRIED) if _free(number)), None)
    if free is None:
        raise RuntimeError(f"ports {port} to {port + TRIED - 1} are all taken; name another with --port")
    if free != port:
        print(f"port {port} is taken; using {free}", flush=True)
    from bard_core.config.sections.storage import TrackingConfig
    from bard_core.store import storage
    from bard_core.tracking import comparison_page

    home = storage.home()
    store = f"sqlite:///{home / 'mlflow.db'}"
    page = f"http://127.0.0.1:{free}/{comparison_page(TrackingConfig(tracking_uri=store))}"
    print(f"MLflow: {page}\nCtrl-C ends it", flush=True)
    screen = sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if browser and screen and sys.stdout.isatty():
        threading.Thread(target=_open, args=(page, free), daemon=True).start()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(free), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", str(home / "mlartifacts")]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    raise typer.Exit(subprocess.call(command, env=environment))


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _open(page: str, port: int) -> None:
    """Once the server listens."""
    import webbrowser

    for _ in range(120):
        if not _free(port):
            break
        time.sleep(0.5)
    time.sleep(1.0)
    webbrowser.open(page)
