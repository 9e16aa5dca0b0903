"""doctor: whether this machine can do what is asked of it, and what to do where it cannot."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

ROOM_GB = 5  # what a demo leaves behind, with room to spare
MEMORY_GB = 4


@dataclass(frozen=True)
class Finding:
    """``mend`` is empty where nothing is wrong."""

    name: str
    found: str
    mend: str = ""


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="the same for machines")] = False) -> None:
    """Look at this machine and say what Bard would stumble over. Ends with 1 when there is something.

    Example: bard doctor
    """
    findings = [finding for look in LOOKS for finding in look()]
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
    """Every package that a verb imports; they come with extras of ``bard``."""
    for name, extra in (("torch", ""), ("transformers", ""), ("flytekit", "train"), ("ray", "train"), ("mlflow", "train"),
                        ("lmms_eval", "evaluate"), ("fastapi", "serve"), ("uvicorn", "serve")):  # fmt: skip
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "not installed", f"pip install 'bard[{extra}]'" if extra else "pip install bard")


def machine() -> Iterator[Finding]:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    mend = "" if gib >= MEMORY_GB else f"the demo wants {MEMORY_GB} GiB; close something, or use a larger machine"
    yield Finding("memory", f"{gib:.0f} GiB, {os.cpu_count()} cores", mend)
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        yield Finding("gpu", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
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
    import urllib.request

    from bard_core import tracking
    from bard_core.config.sections import TrackingConfig

    where = tracking.tracking_uri(TrackingConfig())
    if where.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{where.rstrip('/')}/health", timeout=5).close()
        except OSError as error:
            yield Finding("mlflow", f"{where}: {error}", "start that server, or unset MLFLOW_TRACKING_URI for a local file")
            return
    yield Finding("mlflow", where)


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (python, packages, machine, home, mlflow)
