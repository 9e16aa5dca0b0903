"""The receiver: MLflow says that a version was registered, and a re-evaluation starts. Polling is the fallback.

    BARD_WEBHOOK_SECRET=... python -m bard_core.promotion.webhook configs/reevaluate/lab.yaml [--port 8787] [-- --remote]

Register it once with MLflow (https; http or a private address only where the server's MLFLOW_WEBHOOK_ALLOWED_SCHEMES and
MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS say so):
``MlflowClient().create_webhook("bard", "https://.../", ["model_version.created"], secret=...)``.

A delivery counts when its signature is right, its time is now and its launch has not succeeded before (``deliveries``).
Everything then ends in the same launch, ``pyflyte run``, which is idempotent: what another trigger is judging or has judged is
left alone. What follows ``--`` goes to it.
"""

import argparse
import contextlib
import importlib.util
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bard_core.promotion.deliveries import ID, SIGNATURE, TIMESTAMP, Deliveries, RefusedError, version_of
from bard_core.promotion.request import Request
from bard_core.store import storage

log = logging.getLogger("bard.webhook")
LARGEST_BODY = 256 * 1024
EVERYTHING = 0
CONNECTION_S = 10.0  # how long a client may take, from its connection to our answer
BACKLOG = 128  # connections that may wait to be accepted


class Launcher:
    """Launches one re-evaluation after the other; a version that waits already is not queued again.

    Deliveries that wait in storage are queued by ``resume``, and finished when a launch that covers them ends with 0.
    """

    def __init__(self, launch: Callable[[int], int], deliveries: Deliveries) -> None:
        self._launch, self._deliveries = launch, deliveries
        self._waiting: queue.Queue[int] = queue.Queue()
        self._versions: set[int] = set()
        self._running: int | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._work, daemon=True).start()

    def put(self, version: int) -> bool:
        """Queue a version (:data:`EVERYTHING`: all that lack a score); False when it waits already."""
        with self._lock:
            if version in self._versions:
                return False
            self._versions.add(version)
        self._waiting.put(version)
        return True

    def resume(self) -> None:
        """Queue every delivery that waits in storage: one before the receiver was killed, or one whose launch failed."""
        for version in sorted(set(self._deliveries.waiting().values())):
            self.put(version)

    def deliver(self, name: str, version: int) -> bool:
        """Write a delivery down and queue its version; False when it waits or runs already."""
        new = self._deliveries.keep(name, version)
        return (new or version != self._running) and self.put(version)

    def wait(self) -> None:
        """Until everything queued so far was launched."""
        self._waiting.join()

    def _work(self) -> None:
        while True:
            version = self._waiting.get()
            with self._lock:
                self._versions.discard(version)  # registered again while it runs, it is looked at again
                self._running = version
            try:
                self._run(version)
            except Exception:
                log.exception("re-evaluation of version %d could not be started; it waits for the next poll or start", version)
            finally:
                self._running = None
                self._waiting.task_done()

    def _run(self, version: int) -> None:
        waiting = self._deliveries.waiting()
        covered = [name for name, number in waiting.items() if version in (EVERYTHING, number)]
        code = self._launch(version)
        log.info("re-evaluation of %s ended with %d", f"version {version}" if version else "everything", code)
        if code == 0:
            self._deliveries.finish(covered)


def launch_command(inputs_file: Path, version: int, extra: Sequence[str]) -> list[str]:
    """``pyflyte run`` of ``workflows/reevaluate.py``. ``extra`` (``--remote`` and its like) comes before the file."""
    spec = importlib.util.find_spec("workflows")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("workflows/ is not installed beside bard_core: install the project, or run from its root")
    workflow = str(Path(spec.submodule_search_locations[0]) / "reevaluate.py")
    pyflyte = str(Path(sys.executable).with_name("pyflyte"))
    return [
        pyflyte, "run", *extra, workflow, "reevaluate", "--inputs-file", str(inputs_file.absolute()), "--version", str(version),
    ]  # fmt: skip


class Server(ThreadingHTTPServer):
    """A thread a connection; one that takes longer than :data:`CONNECTION_S` is closed, whatever trickles in."""

    request_queue_size = BACKLOG
    daemon_threads = True

    def __init__(self, place: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._since: dict[socket.socket, float] = {}
        super().__init__(place, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        for connection, since in list(self._since.items()):
            if time.monotonic() - since > CONNECTION_S:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.info("connection from %s broke: %s", client_address, sys.exception())


def serve(deliveries: Deliveries, launcher: Launcher, registered_model: str, host: str, port: int) -> Server:
    """A server, not yet running; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        timeout = CONNECTION_S

        def do_POST(self) -> None:
            try:
                status, words = self._accept()
            except RefusedError as refusal:
                status, words = refusal.status, str(refusal)
            log.info("delivery: %d %s", status, words)
            self._answer(status, words)

        def do_GET(self) -> None:
            self._answer(200, "ready")

        def _accept(self) -> tuple[int, str]:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length[:20]) > LARGEST_BODY:
                raise RefusedError(413, f"a delivery has a length of at most {LARGEST_BODY} bytes")
            body = self.rfile.read(int(length))
            name = deliveries.check({name: self.headers.get(name, "") for name in (ID, TIMESTAMP, SIGNATURE)}, body)
            version = version_of(body, registered_model)
            if version is None:
                return 200, "not about a new version of ours; nothing to do"
            return 202, f"version {version} {'queued' if launcher.deliver(name, version) else 'is queued already'}"

        def _answer(self, status: int, words: str) -> None:
            body = f"{words}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Our own log says more."""

    return Server((host, port), Handler)


def poll(launcher: Launcher, every_s: float) -> None:
    """Look for everything unjudged, and launch again what failed, now and every ``every_s`` seconds."""
    while True:
        launcher.resume()
        launcher.put(EVERYTHING)
        time.sleep(every_s)


def read_arguments(given: Sequence[str]) -> argparse.Namespace:
    """The receiver's arguments; ``extra`` is what follows ``--``, which argparse itself refuses behind an option."""
    end = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m bard_core.promotion.webhook",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="arguments of `pyflyte run` follow --",
    )
    parser.add_argument("inputs_file", type=Path, help="inputs of workflows/reevaluate.py")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8787, help="port to listen on (%(default)s)")
    parser.add_argument("--poll-s", type=float, default=900.0, help="look for unjudged versions this often too; 0: never")
    return parser.parse_args(given[:end], argparse.Namespace(extra=list(given[end + 1 :])))


def main(given: Sequence[str]) -> int:
    """Listen until interrupted; 2 when what it was given is at fault, and nothing was launched then."""
    arguments = read_arguments(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)

    def launch(version: int) -> int:
        return subprocess.run(launch_command(arguments.inputs_file, version, arguments.extra), check=False).returncode

    try:
        request = Request.read(arguments.inputs_file)
        memory = storage.join(storage.root_uri(request.storage_config), "webhook")
        deliveries = Deliveries(os.environ.get("BARD_WEBHOOK_SECRET", ""), memory)
        launcher = Launcher(launch, deliveries)
        server = serve(deliveries, launcher, request.tracking.registered_model, arguments.host, arguments.port)
    except (OSError, ValueError) as error:
        where = f"{arguments.inputs_file}, {arguments.host}:{arguments.port}"
        print(f"webhook: cannot listen ({where}): {error}", file=sys.stderr)
        return 2
    log.info("listening on http://%s:%d", *server.server_address[:2])
    launcher.resume()
    if arguments.poll_s:
        threading.Thread(target=poll, args=(launcher, arguments.poll_s), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
