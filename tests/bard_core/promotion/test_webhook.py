"""The receiver over real HTTP: what is signed, fresh and new launches once; everything else launches nothing."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bard_core.promotion import webhook
from bard_core.promotion.webhook import Deliveries, Launcher, launch_command, serve, signature

SECRET = "a secret of the tests"
EVENT = {"entity": "model_version", "action": "created", "data": {"name": "bard", "version": "7"}}


class Receiver:
    """A running receiver and what it has launched."""

    def __init__(self, memory: Path) -> None:
        self.launched: list[int] = []
        self.launcher = Launcher(lambda version: self.launched.append(version) or 0)
        self.memory = memory
        self.server = serve(Deliveries(SECRET, str(memory)), self.launcher, "bard", "127.0.0.1", 0)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

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
        ({"at": -webhook.TOLERANCE_S - 5}, 401),
        ({"at": webhook.TOLERANCE_S + 5}, 401),
        ({"X-MLflow-Timestamp": str(int(time.time()) + 60)}, 401),  # and the time
        ({"event": b"{"}, 400),
        ({"event": {"entity": "model_version", "action": "created", "data": {"name": "bard", "version": "x"}}}, 400),
        ({"event": {**EVENT, "action": "deleted"}}, 200),
        ({"event": {**EVENT, "data": {"name": "other", "version": "1"}}}, 200),
        ({"Content-Length": str(webhook.LARGEST_BODY + 1)}, 413),
    ],
)
def test_anything_else_launches_nothing(receiver: Receiver, changes: dict, status: int) -> None:
    assert receiver.send(**changes) == status
    assert receiver.launched == []


def test_a_changed_body_is_refused(receiver: Receiver) -> None:
    timestamp = str(int(time.time()))
    headers = {"X-MLflow-Timestamp": timestamp, "X-MLflow-Signature": signature(SECRET, "one", timestamp, b"{}")}
    assert receiver.send(**headers) == 401
    assert receiver.launched == []


def test_old_ids_are_forgotten_and_a_weak_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deliveries, now = Deliveries(SECRET, str(tmp_path)), time.time()
    for index in range(3):
        monkeypatch.setattr(webhook.time, "time", lambda index=index: now + index * 3 * webhook.TOLERANCE_S)
        timestamp = str(int(webhook.time.time()))
        headers = (str(index), timestamp, signature(SECRET, str(index), timestamp, b""))
        deliveries.check(dict(zip((webhook.ID, webhook.TIMESTAMP, webhook.SIGNATURE), headers, strict=True)), b"")
        assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="at least 16 characters"):
        Deliveries("", str(tmp_path))


def test_launches_wait_in_line_and_a_failure_stops_none() -> None:
    started, go, launched = threading.Event(), threading.Event(), []

    def launch(version: int) -> int:
        started.set()
        go.wait(10)
        launched.append(version)
        if version == 1:
            raise OSError("no such program")
        return 0

    launcher = Launcher(launch)
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
    assert webhook.read_arguments(["inputs.yaml"]).extra == []


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
