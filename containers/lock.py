"""Write the locks from the installed environment: requirements/dev.lock, and containers/<stage>/requirements.lock with hashes.

    make lock        # after a change of the dependencies in pyproject.toml was installed into .venv

A stage's lock holds what ``bard[<stage>]`` needs and nothing else, in dev.lock's versions. Hashes are those of the files that
pip chooses on the machine that runs this: lock on Linux x86-64 with Python 3.11, as the images are.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("prepare", "train", "evaluate", "tracking")
BUILD = ("setuptools",)  # builds Bard itself in the images and in .venv
DEV_HEAD = "# Exact versions of the developer environment; install with: pip install -r requirements/dev.lock"
STAGE_HEAD = "# Exact versions and hashes of the {stage} stage (Linux x86-64, Python 3.11). Written by containers/lock.py."


def installed() -> dict[str, str]:
    """``name==version`` of every distribution of this environment but Bard and pip, by canonical name."""
    found = {canonicalize_name(dist.name): f"{dist.name}=={dist.version}" for dist in distributions()}
    return {name: pin for name, pin in sorted(found.items()) if name not in ("bard", "pip")}


def closure(stage: str) -> set[str]:
    """Canonical names of everything that ``bard[stage]`` needs on this machine, itself left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    waiting = [Requirement(line) for line in (*BUILD, *project["dependencies"], *extras[stage])]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            lines = extras.get(extra, []) if name == "bard" else distribution(name).requires or []
            needed = [Requirement(line) for line in lines]
            waiting += [item for item in needed if item.marker is None or item.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen} - {"bard"}


def hashes(pins: list[str]) -> dict[str, str]:
    """sha256 of the file that pip chooses for each pin, by canonical name."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted, report = Path(scratch) / "pins.txt", Path(scratch) / "report.json"
        wanted.write_text("\n".join(pins) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        subprocess.run([*command, "--report", str(report), "-r", str(wanted)], check=True)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {canonicalize_name(i["metadata"]["name"]): i["download_info"]["archive_info"]["hashes"]["sha256"] for i in items}


def main() -> None:
    pins = installed()
    (ROOT / "requirements" / "dev.lock").write_text("\n".join([DEV_HEAD, *pins.values()]) + "\n", encoding="utf-8")
    needs = {stage: closure(stage) for stage in STAGES}
    sha256 = hashes([pins[name] for name in sorted(set().union(*needs.values()))])
    for stage, names in needs.items():
        lines = [f"{pins[name]} --hash=sha256:{sha256[name]}" for name in sorted(names)]
        path = ROOT / "containers" / stage / "requirements.lock"
        path.write_text("\n".join([STAGE_HEAD.format(stage=stage), *lines]) + "\n", encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    main()
