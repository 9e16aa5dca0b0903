"""The receiver: MLflow says that a version was registered, and a re-evaluation starts. Polling is the fallback.

    BARD_WEBHOOK_SECRET=... python -m bard_core.promotion.webhook configs/reevaluate/lab.yaml [--port 8787] [-- --remote]

Register it once with MLflow (https; http or a private address only where the server's MLFLOW_WEBHOOK_ALLOWED_SCHEMES and
MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS say so):
``MlflowClient().create_webhook("bard", "https://.../", ["model_version.created"], secret=...)``.

A delivery counts when its signature is right, its time is now and its id is new. Everything then ends in the same launch,
``pyflyte run``, which is idempotent: what another trigger is judging or has judged is left alone. What follows ``--`` goes to it.
"""

import argparse
import base64
import contextlib
import hashlib
import hmac
import importlib.util
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bard_core.promotion.reevaluate import Request
from bard_core.store import storage

log = logging.getLogger("bard.webhook")
ID, TIMESTAMP, SIGNATURE = "X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature"
TOLERANCE_S = 300  # how far a delivery's time may be from ours
LARGEST_BODY = 256 * 1024
EVERYTHING = 0


class RefusedError(Exception):
    """A delivery that does not count; ``status`` is the HTTP answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def signature(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """MLflow's ``X-MLflow-Signature``: v1 and the HMAC-SHA256 of id, time and body, joined by dots."""
    mac = hmac.new(secret.encode(), f"{delivery_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(mac.digest()).decode()}"


class Deliveries:
    """Says which deliveries count. Ids are remembered on disk for as long as their time would be accepted."""

    def __init__(self, secret: str, memory_uri: str) -> None:
        if len(secret) < 16:
            raise ValueError("BARD_WEBHOOK_SECRET needs at least 16 characters; make one with: openssl rand -hex 32")
        self._secret, self._memory = secret, memory_uri

    def check(self, headers: Mapping[str, str], body: bytes) -> str:
        """Returns the delivery's id, now remembered.

        Raises:
            RefusedError: a header is missing, the signature or the time is wrong, or the id was seen before.
        """
        delivery_id, timestamp = headers.get(ID, ""), headers.get(TIMESTAMP, "")
        given = headers.get(SIGNATURE, "")
        if not hmac.compare_digest(given.encode(), signature(self._secret, delivery_id, timestamp, body).encode()):
            raise RefusedError(401, "the signature is wrong")
        if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > TOLERANCE_S:
            raise RefusedError(401, "the delivery is too old, or its clock or ours is wrong")
        if not delivery_id or not storage.create_file(self._place(delivery_id), timestamp.encode()):
            raise RefusedError(200, "delivered before; nothing to do")
        self._forget_old()
        return delivery_id

    def forget(self, delivery_id: str) -> None:
        """Let a delivery come again, because it could not be acted upon."""
        storage.delete_file(self._place(delivery_id))

    def _place(self, delivery_id: str) -> str:
        return storage.join(self._memory, hashlib.sha256(delivery_id.encode()).hexdigest())

    def _forget_old(self) -> None:
        for name in storage.list_files(self._memory):
            place = storage.join(self._memory, name)
            with contextlib.suppress(storage.StorageError, ValueError):
                if time.time() - int(storage.read_bytes(place)) > 2 * TOLERANCE_S:
                    storage.delete_file(place)


def version_of(body: bytes, registered_model: str) -> int | None:
    """The version that a delivery is about; None for another event or another registered model.

    Raises:
        RefusedError: the body is not an MLflow event.
    """
    try:
        event = json.loads(body)
        if (event["entity"], event["action"]) != ("model_version", "created") or event["data"]["name"] != registered_model:
            return None
        return int(event["data"]["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(400, f"not an MLflow event ({type(error).__name__})") from error


class Launcher:
    """Launches one re-evaluation after the other; a version that waits already is not queued again."""

    def __init__(self, launch: Callable[[int], int]) -> None:
        self._launch = launch
        self._waiting: queue.Queue[int] = queue.Queue()
        self._names: set[int] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._work, daemon=True).start()

    def put(self, version: int) -> bool:
        """Queue a version (:data:`EVERYTHING`: all that lack a score); False when it waits already."""
        with self._lock:
            if version in self._names:
                return False
            self._names.add(version)
        self._waiting.put(version)
        return True

    def wait(self) -> None:
        """Until everything queued so far was launched."""
        self._waiting.join()

    def _work(self) -> None:
        while True:
            version = self._waiting.get()
            with self._lock:
                self._names.discard(version)  # registered again while it runs, it is looked at again
            try:
                code = self._launch(version)
                log.info("re-evaluation of %s ended with %d", f"version {version}" if version else "everything", code)
            except Exception:
                log.exception("re-evaluation of version %d could not be started; polling or CI will find it", version)
            finally:
                self._waiting.task_done()


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


def serve(deliveries: Deliveries, launcher: Launcher, registered_model: str, host: str, port: int) -> ThreadingHTTPServer:
    """A server, not yet running; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds a client may keep us waiting

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
            if not length.isdecimal() or int(length) > LARGEST_BODY:
                raise RefusedError(413, f"a delivery has a length of at most {LARGEST_BODY} bytes")
            body = self.rfile.read(int(length))
            delivery_id = deliveries.check({name: self.headers.get(name, "") for name in (ID, TIMESTAMP, SIGNATURE)}, body)
            try:
                version = version_of(body, registered_model)
            except RefusedError:
                deliveries.forget(delivery_id)
                raise
            if version is None:
                return 200, "not about a new version of ours; nothing to do"
            return 202, f"version {version} {'queued' if launcher.put(version) else 'is queued already'}"

        def _answer(self, status: int, words: str) -> None:
            body = f"{words}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Our own log says more."""

    return ThreadingHTTPServer((host, port), Handler)


def poll(launcher: Launcher, every_s: float) -> None:
    """Look for everything unjudged, now and every ``every_s`` seconds."""
    while True:
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
    parser.add_argument("--poll-s", type=float, default=0.0, help="look for unjudged versions this often too; 0: never")
    return parser.parse_args(given[:end], argparse.Namespace(extra=list(given[end + 1 :])))


def main(given: Sequence[str]) -> int:
    """Listen until interrupted; 2 when what it was given is at fault, and nothing was launched then."""
    arguments = read_arguments(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)

    def launch(version: int) -> int:
        return subprocess.run(launch_command(arguments.inputs_file, version, arguments.extra), check=False).returncode

    launcher = Launcher(launch)
    try:
        request = Request.read(arguments.inputs_file)
        memory = storage.join(storage.root_uri(request.storage_config), "webhook")
        deliveries = Deliveries(os.environ.get("BARD_WEBHOOK_SECRET", ""), memory)
        server = serve(deliveries, launcher, request.tracking.registered_model, arguments.host, arguments.port)
    except (OSError, ValueError) as error:
        where = f"{arguments.inputs_file}, {arguments.host}:{arguments.port}"
        print(f"webhook: cannot listen ({where}): {error}", file=sys.stderr)
        return 2
    log.info("listening on http://%s:%d", *server.server_address[:2])
    if arguments.poll_s:
        threading.Thread(target=poll, args=(launcher, arguments.poll_s), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
