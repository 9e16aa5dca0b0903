"""doctor: whether this machine, or this pod, can do what is asked of it, and what to do where it cannot."""

import base64
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

from bard_core.cli import cluster
from bard_core.cli.finding import Finding

ROOM_GB = 5  # what a demo leaves behind, with room to spare
MEMORY_GB = 4
LOG_IN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (in pods: the secret bard-training) to a user of that server"


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    root: Annotated[str, typer.Option(envvar="BARD_ROOT_URI", help="s3:// or gs:// place of artifacts, to write and read")] = "",
    whole_cluster: Annotated[bool, typer.Option("--cluster", help="also the cluster of kubectl's context")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the same for machines")] = False,
) -> None:
    """Look at this machine, or this pod, and say what Bard would stumble over. Ends with 1 when there is something.

    MLflow and Flyte are asked where MLFLOW_TRACKING_URI and FLYTE_PLATFORM_URL name them.

    Example: bard doctor --cluster --root s3://my-bucket/bard
    """
    looks: list[Callable[[], Iterator[Finding]]] = [
        *LOOKS,
        *([partial(cluster.bucket, root)] if root else []),
        *([cluster.kubernetes] if whole_cluster else []),
    ]
    findings = [finding for look in looks for finding in look()]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    for finding in () if as_json else findings:
        print(f"{'ok  ' if not finding.mend else 'FIX '} {finding.name:<10} {finding.found}")
        if finding.mend:
            print(f"     {'':<10} {finding.mend}")
    if any(finding.mend for finding in findings):
        raise typer.Exit(1)


def python() -> Iterator[Finding]:
    right = (3, 11) <= sys.version_info[:2] <= (3, 12)
    mend = "" if right else "install Python 3.11 or 3.12, and say: make setup PYTHON=python3.12"
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", mend)


def packages() -> Iterator[Finding]:
    """Every package that a verb imports; they come with extras of ``bard``, and an image has those of its stages."""
    from importlib.metadata import PackageNotFoundError, version

    yield Finding("bard", f"{version('bard')}, commit {os.environ.get('BARD_GIT_COMMIT', 'unknown')}")
    for name, extra in (("torch", ""), ("transformers", ""), ("flytekit", "train"), ("ray", "train"), ("mlflow", "train"),
                        ("lmms_eval", "evaluate"), ("fastapi", "serve"), ("uvicorn", "serve")):  # fmt: skip
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            if cluster.in_pod():
                yield Finding(name, "not in this image")
                continue
            yield Finding(name, "not installed", f"pip install 'bard[{extra}]'" if extra else "pip install bard")


def machine() -> Iterator[Finding]:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    mend = "" if gib >= MEMORY_GB else f"the demo wants {MEMORY_GB} GiB; close something, or use a larger machine"
    yield Finding("memory", f"{gib:.0f} GiB, {os.cpu_count()} cores", mend)
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        yield Finding("gpu", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
    elif os.environ.get("NVIDIA_VISIBLE_DEVICES", "void") not in ("", "none", "void"):
        mend = (
            f"the node's driver must be new enough for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "use an image with CUDA"
        )
        yield Finding("gpu", "this container has one, and torch cannot use it", mend)
    else:
        yield Finding("gpu", "none; the lab needs none, a 4B model does")


def home() -> Iterator[Finding]:
    from bard_core.store import storage, workshop
    from bard_core.store.hiccups import StorageError

    try:
        folder = storage.home()
        with workshop.scratch("doctor") as scratch:
            (scratch / "try").write_bytes(b"1")
    except (OSError, StorageError) as error:
        yield Finding("home", str(error), "set BARD_HOME to a folder that can be written")
        return
    free = shutil.disk_usage(folder).free / 2**30
    mend = "" if free >= ROOM_GB else f"free {ROOM_GB} GiB, or set BARD_HOME to a folder on another disk"
    yield Finding("home", f"{folder}, {free:.0f} GiB free", mend)


def mlflow() -> Iterator[Finding]:
    """Whether the server is there, and lets us in as a run would ask."""
    from urllib.error import HTTPError

    from bard_core import tracking
    from bard_core.config.sections.storage import TrackingConfig

    where = tracking.tracking_uri(TrackingConfig())
    if where.startswith(("http://", "https://")):
        try:
            _ask(f"{where.rstrip('/')}/health")
            _ask(f"{where.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1")
        except HTTPError as error:
            words = error.read(200).decode(errors="replace").strip()
            mend = "name this host in the server's --allowed-hosts" if "host" in words.lower() else LOG_IN
            yield Finding("mlflow", f"{where}: {error.code} {words}", mend)
            return
        except OSError as error:
            yield Finding("mlflow", f"{where}: {error}", "start that server, or unset MLFLOW_TRACKING_URI for a local file")
            return
    yield Finding("mlflow", where)


def _ask(url: str) -> None:
    """GET with the log-in that MLflow's client would send. Raises OSError; HTTPError is one."""
    from urllib.request import Request, urlopen

    request = Request(url)
    if name := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        given = f"{name}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(given).decode()}")
    urlopen(request, timeout=5).close()


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python,
    packages,
    machine,
    home,
    mlflow,
    cluster.flyte,
    cluster.environment,
)
