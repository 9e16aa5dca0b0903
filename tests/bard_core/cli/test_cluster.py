"""doctor beyond this machine: each look says ok where all is well, and what to mend where it is not."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from flyteidl.admin import version_pb2
from flyteidl.service import admin_pb2_grpc

from bard_core.cli import cluster, doctor

ROOT = Path(__file__).resolve().parents[3]


class Answers(BaseHTTPRequestHandler):
    """GET: what ``server.pages`` has for the path; a page may ask for a log-in."""

    def do_GET(self) -> None:
        wanted, page = self.server.pages.get(self.path.split("?")[0], (None, None))  # type: ignore[attr-defined]
        code = 404 if page is None else 401 if wanted not in (None, self.headers.get("Authorization")) else 200
        body = json.dumps(page if code == 200 else {"reason": "no"}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture
def served() -> Iterator[Any]:
    """``served.pages`` (path -> (authorization or None, body)) at ``served.url``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.pages, server.url = {}, f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def mends(look: Any) -> dict[str, str]:
    return {finding.name: finding.mend for finding in look}


def test_storage_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    (finding,) = cluster.bucket(str(tmp_path))
    assert (finding.mend, "written, read, deleted" in finding.found) == ("", True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    (tmp_path / "file").write_text("in the way")
    (finding,) = cluster.bucket(str(tmp_path / "file"))
    assert "read, write and delete" in finding.mend


def test_mlflow_wants_the_log_in_that_the_secret_brings(served: Any, bard_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = "Basic " + base64.b64encode(b"bard:secret").decode()
    served.pages = {"/health": (None, "OK"), "/api/2.0/mlflow/experiments/search": (allowed, {"experiments": []})}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
    assert "MLFLOW_TRACKING_USERNAME" in mends(doctor.mlflow())["mlflow"]
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bard")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert mends(doctor.mlflow()) == {"mlflow": ""}


class Admin(admin_pb2_grpc.AdminServiceServicer):
    def GetVersion(self, request: Any, context: Any) -> Any:
        return version_pb2.GetVersionResponse()


def test_flyte_is_asked_for_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLYTE_PLATFORM_URL", raising=False)
    assert list(cluster.flyte()) == []
    server = grpc.server(ThreadPoolExecutor(1))
    admin_pb2_grpc.add_AdminServiceServicer_to_server(Admin(), server)
    monkeypatch.setenv("FLYTE_PLATFORM_URL", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    monkeypatch.setenv("FLYTE_PLATFORM_INSECURE", "true")
    server.start()
    assert mends(cluster.flyte()) == {"flyte": ""}
    server.stop(None).wait()
    assert "port-forward" in mends(cluster.flyte())["flyte"]


def test_a_pod_names_what_its_secret_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    assert list(cluster.environment()) == []
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bard")
    assert mends(cluster.environment())["secrets"].startswith("put MLFLOW_TRACKING_PASSWORD into the secret bard-training")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "x")
    assert set(mends(cluster.environment()).values()) == {""}


def pages(gpus: str, secrets: dict[tuple[str, str], tuple[str, ...]]) -> dict[str, Any]:
    """A cluster's answers."""
    node = {"metadata": {"name": "n"}, "status": {"allocatable": {"nvidia.com/gpu": gpus}}}
    ray = {"name": "ray.io", "versions": [{"groupVersion": "ray.io/v1", "version": "v1"}]}
    facts = {"major": "1", "minor": "32+", "gitVersion": "v1.32.1", "platform": "linux/amd64", "goVersion": "go1.23"}
    facts |= dict.fromkeys(("buildDate", "compiler", "gitCommit", "gitTreeState"), "x")
    found: dict[str, Any] = {"/version/": facts, "/api/v1/nodes": {"items": [node]}, "/apis/": {"groups": [ray]}}
    for (namespace, name), keys in secrets.items():
        found[f"/api/v1/namespaces/{namespace}/secrets/{name}"] = {"data": dict.fromkeys(keys, "eA==")}
    return {path: (None, body) for path, body in found.items()}


def test_the_cluster_is_looked_through_from_a_laptop(
    served: Any, bard: Any, bard_home: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    body = {"clusters": [{"name": "c", "cluster": {"server": served.url}}], "users": [{"name": "u", "user": {}}]}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump({**body, "contexts": [context], "current-context": "c"}))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    served.pages = pages("8", cluster.SECRETS)
    assert set(mends(cluster.kubernetes()).values()) == {""}
    lacking = {**cluster.SECRETS, ("flyte", "flyte-db"): ("password",)}
    del lacking["mlflow", "mlflow-auth"]
    served.pages = pages("0", lacking)
    said = mends(cluster.kubernetes())
    assert "device plugin" in said["gpus"] and said["flyte/flyte-db"].startswith("add ca.pem to it")
    assert said["mlflow/mlflow-auth"].startswith("kubectl -n mlflow create secret generic mlflow-auth")
    out = bard("doctor", "--cluster", "--root", tmp_path / "root", expect=1)
    assert re.search(r"ok +storage", out) and re.search(r"FIX +gpus +0", out)


def test_doctor_knows_the_secrets_that_the_page_lists() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| `([\w-]+)` \| (.*) \|$", (ROOT / cluster.PAGE).read_text(), re.MULTILINE)
    listed = {(namespace, name): text for namespace, name, text in rows}
    assert listed.keys() == cluster.SECRETS.keys()
    for secret, keys in cluster.SECRETS.items():
        assert all(f"`{key}`" in listed[secret] for key in keys), secret
