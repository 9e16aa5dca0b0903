"""The receiver over real HTTP: what is signed, fresh and new launches once; everything else launches nothing."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bard_core.promotion import webhook
from bard_core.promotion.deliveries import TOLERANCE_S, Deliveries, signature
from bard_core.promotion.webhook import Launcher, launch_command, serve

SECRET = "a secret of the tests"
EVENT = {"entity": "model_version", "action": "created", "data": {"name": "bard", "version": "7"}}


class Receiver:
    """A running receiver and what it has launched."""

    def __init__(self, memory: Path) -> None:
        self.launched: list[int] = []
        self.code = 0
        self.memory, self.deliveries = memory, Deliveries(SECRET, str(memory))
        self.launcher = Launcher(self.launch, self.deliveries)
        self.server = serve(self.deliveries, self.launcher, "bard", "127.0.0.1", 0)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def launch(self, version: int) -> int:
        self.launched.append(version)
        return self.code

    def send(self, event: object = EVENT, name: str = "one", at: float = 0.0, secret: str = SECRET, **headers: str) -> int:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        timestamp = str(int(time.time() + at))
        own = {"X-MLflow-Delivery-Id": name, "X-MLflow-Timestamp": timestamp}
        own["X-MLflow-Signature"] = signature(secret, name, timestamp, body)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_address[1], timeout=10)
        connection.request("POST", "/", body, {**own, **headers})
        status = connection.getresponse().status
        connection.close()
        self.launcher.wait()
        return status


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    receiver = Receiver(tmp_path)
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def test_a_signed_event_launches_its_version_once(receiver: Receiver) -> None:
    assert receiver.send() == 202
    assert receiver.send() == 200, "the same delivery again is acknowledged"
    assert receiver.launched == [7]
    assert Receiver(receiver.memory).send() == 200, "also after a restart"
    assert receiver.send(name="two") == 202
    assert receiver.launched == [7, 7], "another delivery is another launch, which finds nothing to do"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"secret": "another secret of tests"}, 401),
        ({"X-MLflow-Signature": ""}, 401),
        ({"X-MLflow-Signature": "v1,é".encode().decode("latin-1")}, 401),
        ({"X-MLflow-Delivery-Id": "other"}, 401),  # the signature covers the id
        ({"at": -TOLERANCE_S - 5}, 401),
        ({"at": TOLERANCE_S + 5}, 401),
        ({"X-MLflow-Timestamp": str(int(time.time()) + 60)}, 401),  # and the time
        ({"event": b"{"}, 400),
        ({"event": {"entity": "model_version", "action": "created", "data": {"name": "bard", "version": "x"}}}, 400),
        ({"event": b"[" * 100_000}, 400),
        ({"event": b'"' + b"\xff" * 9 + b'"'}, 400),
        ({"event": [EVENT]}, 400),
        ({"event": {**EVENT, "data": 7}}, 400),
        *(
            ({"event": json.dumps(EVENT).replace('"7"', odd).encode()}, 400)
            for odd in (
                "1e999",
                "-1e999",
                "-7",
                '"-7"',
                "7.0",
                "7.5",
                '"7.5"',
                "0",
                '""',
                "true",
                "null",
                "NaN",
                "[7]",
                '"\\u0667"',
            )
        ),
        *(({"event": json.dumps(EVENT).replace('"7"', huge).encode()}, 400) for huge in ("9" * 9999, str(2**31), f'"{10**30}"')),
        ({"event": {**EVENT, "action": "deleted"}}, 200),
        ({"event": {**EVENT, "data": {"name": "other", "version": "1"}}}, 200),
        ({"Content-Length": str(webhook.LARGEST_BODY + 1)}, 413),
    ],
)
def test_anything_else_launches_nothing(receiver: Receiver, changes: dict, status: int) -> None:
    assert receiver.send(**changes) == status
    assert receiver.launched == []
    assert not [path for path in receiver.memory.rglob("*") if path.is_file()], "and nothing is remembered"


def test_a_changed_body_is_refused(receiver: Receiver) -> None:
    timestamp = str(int(time.time()))
    headers = {"X-MLflow-Timestamp": timestamp, "X-MLflow-Signature": signature(SECRET, "one", timestamp, b"{}")}
    assert receiver.send(**headers) == 401
    assert receiver.launched == []


def test_an_id_is_remembered_once_its_launch_has_succeeded(receiver: Receiver) -> None:
    receiver.code = 1
    assert receiver.send() == 202 and receiver.launched == [7]
    assert list(receiver.deliveries.waiting().values()) == [7], "a launch that failed is not done"
    assert receiver.send() == 202 and receiver.launched == [7, 7], "the same delivery tries again"
    receiver.launcher.resume()  # as every poll does
    receiver.launcher.wait()
    assert receiver.launched == [7, 7, 7]
    receiver.code = 0
    receiver.launcher.put(webhook.EVERYTHING)
    receiver.launcher.wait()
    assert receiver.deliveries.waiting() == {} and receiver.send() == 200, "a launch of everything covers it"


DRIVER = """
import sys, time
from pathlib import Path
from bard_core.promotion.deliveries import Deliveries
from bard_core.promotion.webhook import Launcher, serve

folder, secret, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def launch(version):
    with (folder / "launched").open("a") as file:
        file.write(f"{version}\\n")
    time.sleep(600 if how == "hang" else 0)
    return 0

deliveries = Deliveries(secret, str(folder / "memory"))
launcher = Launcher(launch, deliveries)
server = serve(deliveries, launcher, "bard", "127.0.0.1", 0)
launcher.resume()
print(server.server_address[1], flush=True)
server.serve_forever(0.02)
"""


def test_launches_survive_a_kill(tmp_path: Path) -> None:
    def start(how: str) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", DRIVER, str(tmp_path), SECRET, how]
        program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
        assert program.stdout is not None
        return program, int(program.stdout.readline())

    def launched(count: int) -> list[str]:
        deadline = time.monotonic() + 60
        path = tmp_path / "launched"
        while not path.exists() or len(path.read_text().split()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return path.read_text().split()

    def send(port: int, name: str, version: int) -> int:
        body = json.dumps({**EVENT, "data": {"name": "bard", "version": str(version)}}).encode()
        stamp = str(int(time.time()))
        headers = {webhook.ID: name, webhook.TIMESTAMP: stamp, webhook.SIGNATURE: signature(SECRET, name, stamp, body)}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/", body, headers)
        return connection.getresponse().status

    program, port = start("hang")
    assert [send(port, "one", 7), send(port, "two", 8)] == [202, 202]
    assert launched(1) == ["7"]
    program.kill()  # 7 is running, 8 waits
    program.wait()
    program, port = start("go")
    try:
        assert launched(3) == ["7", "7", "8"]
        deadline = time.monotonic() + 60
        while [send(port, "one", 7), send(port, "two", 8)] != [200, 200]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        program.kill()
        program.wait()


def test_a_burst_is_taken_and_slow_connections_are_closed(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "CONNECTION_S", 0.5)
    assert receiver.server.request_queue_size >= 128
    place = receiver.server.server_address[:2]
    slow = socket.create_connection(place, timeout=10)
    slow.sendall(b"POST / HTTP/1.1\r\n")
    closed, started = False, time.monotonic()
    while not closed and time.monotonic() - started < 8:
        try:
            slow.sendall(b"X: y\r\n")  # a byte now and then keeps no connection open
            slow.settimeout(0.1)
            closed = slow.recv(1) == b""
        except TimeoutError:
            continue
        except OSError:
            closed = True
    assert closed
    assert receiver.send() == 202


def test_done_ids_are_forgotten_when_they_cannot_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deliveries, now = Deliveries(SECRET, str(tmp_path)), time.time()
    for index in range(3):
        monkeypatch.setattr(webhook.time, "time", lambda index=index: now + index * 3 * TOLERANCE_S)
        timestamp = str(int(webhook.time.time()))
        headers = (str(index), timestamp, signature(SECRET, str(index), timestamp, b""))
        name = deliveries.check(dict(zip((webhook.ID, webhook.TIMESTAMP, webhook.SIGNATURE), headers, strict=True)), b"")
        assert deliveries.keep(name, 7) and not deliveries.keep(name, 7)
        deliveries.finish([name])
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    with pytest.raises(ValueError, match="at least 16 characters"):
        Deliveries("", str(tmp_path))


def test_launches_wait_in_line_and_a_failure_stops_none(tmp_path: Path) -> None:
    started, go, launched = threading.Event(), threading.Event(), []

    def launch(version: int) -> int:
        started.set()
        go.wait(10)
        launched.append(version)
        if version == 1:
            raise OSError("no such program")
        return 0

    launcher = Launcher(launch, Deliveries(SECRET, str(tmp_path)))
    assert launcher.put(1)
    started.wait(10)
    assert [launcher.put(2), launcher.put(2), launcher.put(webhook.EVERYTHING)] == [True, False, True]
    go.set()
    launcher.wait()
    assert launched == [1, 2, 0]


def test_the_launch_is_pyflyte_run_of_our_workflow(tmp_path: Path) -> None:
    command = launch_command(tmp_path / "inputs.yaml", 7, ["--remote"])
    assert command[1:3] == ["run", "--remote"] and command[4:] == [
        "reevaluate", "--inputs-file", str(tmp_path / "inputs.yaml"), "--version", "7",
    ]  # fmt: skip
    assert Path(command[0]).is_file() and Path(command[3]).is_file()


def test_the_deployed_command_line_is_understood() -> None:
    documents = yaml.safe_load_all((Path(__file__).parents[3] / "deploy" / "receiver.yaml").read_text(encoding="utf-8"))
    deployment = next(document for document in documents if document["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    program, *given = [*container["command"], *container["args"]]
    assert (program, *given[:2]) == ("python", "-m", "bard_core.promotion.webhook")
    arguments = webhook.read_arguments(given[2:])
    assert (arguments.host, arguments.port, arguments.poll_s) == ("0.0.0.0", 8787, 3600.0)
    assert arguments.extra[0] == "--remote" and arguments.extra[-2] == "--image"
    plain = webhook.read_arguments(["inputs.yaml"])
    assert plain.extra == [] and plain.poll_s > 0, "polling is on by default"


@pytest.mark.parametrize("fault", ["inputs", "secret", "port"])
def test_a_receiver_that_cannot_listen_says_why_and_launches_nothing(
    fault: str, tmp_path: Path, bard_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[int] = []
    monkeypatch.setattr(Launcher, "put", lambda self, version: launched.append(version) or True)
    monkeypatch.setenv("BARD_WEBHOOK_SECRET", "short" if fault == "secret" else SECRET)
    inputs = tmp_path / "inputs.yaml"
    inputs.write_text("evaluation: [" if fault == "inputs" else "evaluation: {suite: lab}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1] if fault == "port" else 0
        assert webhook.main([str(inputs), "--port", str(port), "--poll-s", "600"]) == 2
    words = {"inputs": "not YAML", "secret": "BARD_WEBHOOK_SECRET needs at least 16", "port": "in use"}[fault]
    assert words in capsys.readouterr().err
    assert launched == []
