"""An S3 API, an MLflow server and a packaged project: what pods need of a cluster."""

import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from .runner import Runner, package

SECRETS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a real S3 API, which pods find by the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    before = dict(os.environ)
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "FLYTE_AWS_ENDPOINT": endpoint, **SECRETS}
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where pyflyte-execute is, as in the images
    name = f"bard-{uuid.uuid4().hex[:8]}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=name)
    yield name
    os.environ.clear()
    os.environ.update(before)
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A runner of the packaged project, with an MLflow server."""
    folder = tmp_path_factory.mktemp("cluster")
    with mlflow_server(folder) as address:
        os.environ["MLFLOW_TRACKING_URI"] = address
        yield Runner.of_package(package(folder / "bard.tgz"), bucket, folder / "pods")


class mlflow_server:
    """A server of its own on a free port, while the body runs."""

    def __init__(self, folder: Path) -> None:
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        program = str(Path(sys.executable).parent / "mlflow")
        command = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "files")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.command, self.environment = command, environment

    def __enter__(self) -> str:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, env=self.environment, start_new_session=True, **quiet)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=2)
                return self.address
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        raise RuntimeError("the MLflow server did not start within two minutes")

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, 15)
        self.process.wait(timeout=30)
