"""Write the locks from the installed environment: requirements/dev.lock, and containers/<image>/requirements.lock with hashes.

    make lock         # after a change of the dependencies in pyproject.toml was installed into .venv
    make lock-torch   # torch-cpu.lock alone, with hashes, on any machine that reaches PyTorch's index

An image's lock holds what its extras of ``bard`` need and nothing else, in dev.lock's versions. Hashes are those of the files
that pip chooses on the machine that runs this: lock on Linux x86-64 with Python 3.11, as the images are.

``torch-cpu.lock`` holds the builds without CUDA of PyTorch's own index, for images whose stages need no GPU. Where that index
cannot be reached, it holds exact versions without hashes, of which no image is built.
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
IMAGES = {
    "prepare": ("prepare",),
    "train": ("train",),
    "evaluate": ("evaluate",),
    "report": ("evaluate",),
    "one": ("train", "evaluate"),
    "tracking": ("tracking",),
}
WITHOUT_CUDA = ("prepare", "report")  # torch comes from torch-cpu.lock
WITHOUT_BARD = ("tracking",)  # the server runs none of our code
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_BUILDS = ("torch", "torchvision")
FOR_IMAGES = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--only-binary", ":all:")
CUDA = ("cuda-", "nvidia-", "triton")
BUILD = ("setuptools",)  # builds Bard itself in the images and in .venv
DEV_HEAD = "# Exact versions of the developer environment; install with: pip install -r requirements/dev.lock"
IMAGE_HEAD = "# Exact versions and hashes of the image {image} (Linux x86-64, Python 3.11). Written by containers/lock.py."
CPU_HEAD = f"# Builds without CUDA, from {CPU_INDEX}. Written by containers/lock.py."


def installed() -> dict[str, str]:
    """``name==version`` of every distribution of this environment but Bard and pip, by canonical name."""
    found = {canonicalize_name(dist.name): f"{dist.name}=={dist.version}" for dist in distributions()}
    return {name: pin for name, pin in sorted(found.items()) if name not in ("bard", "pip")}


def closure(image: str) -> set[str]:
    """Canonical names of everything that an image's lock holds: what its extras need on this machine, Bard left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    own = [] if image in WITHOUT_BARD else [*BUILD, *project["dependencies"]]
    waiting = [Requirement(line) for line in (*own, *(line for extra in IMAGES[image] for line in extras[extra]))]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if image in WITHOUT_CUDA and name.startswith(CUDA):
            continue
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            lines = extras.get(extra, []) if name == "bard" else distribution(name).requires or []
            needed = [Requirement(line) for line in lines]
            waiting += [item for item in needed if item.marker is None or item.marker.evaluate({"extra": extra})]
    left_out = {"bard", *(CPU_BUILDS if image in WITHOUT_CUDA else ())}
    return {name for name, _ in seen} - left_out


def hashes(pins: list[str], *options: str) -> dict[str, str]:
    """sha256 of the file that pip, with these options, chooses for each pin, by canonical name. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted, report = Path(scratch) / "pins.txt", Path(scratch) / "report.json"
        wanted.write_text("\n".join(pins) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        command += ["--target", scratch]  # asked for beside a platform; nothing is written there
        subprocess.run([*command, *options, "--report", str(report), "-r", str(wanted)], check=True)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {canonicalize_name(i["metadata"]["name"]): i["download_info"]["archive_info"]["hashes"]["sha256"] for i in items}


def lock_torch(pins: dict[str, str]) -> bool:
    """Write torch-cpu.lock, the builds without CUDA of these versions. Returns whether it has its hashes."""
    wanted = {name: f"{pins[name].split('+')[0]}+cpu" for name in CPU_BUILDS}
    try:
        sha256 = hashes(list(wanted.values()), "--index-url", CPU_INDEX, *FOR_IMAGES)
    except subprocess.CalledProcessError:
        print(f"{CPU_INDEX} was not reached: torch-cpu.lock has no hashes; say make lock-torch where it is", file=sys.stderr)
        sha256 = {}
    lines = [f"{pin} --hash=sha256:{sha256[name]}" if sha256 else pin for name, pin in wanted.items()]
    (ROOT / "containers" / "torch-cpu.lock").write_text("\n".join([CPU_HEAD, *lines]) + "\n", encoding="utf-8")
    return bool(sha256)


def locked(image: str) -> dict[str, str]:
    """``name==version`` of everything in an image's lock, by canonical name."""
    lines = (ROOT / "containers" / image / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split()[0] for line in lines if not line.startswith("#")]
    return {canonicalize_name(pin.partition("==")[0]): pin for pin in pins}


def main() -> int:
    if sys.argv[1:] == ["torch-cpu"]:
        return 0 if lock_torch(locked("train")) else 1
    pins = installed()
    (ROOT / "requirements" / "dev.lock").write_text("\n".join([DEV_HEAD, *pins.values()]) + "\n", encoding="utf-8")
    needs = {image: closure(image) for image in IMAGES}
    sha256 = hashes([pins[name] for name in sorted(set().union(*needs.values()))])
    for image, names in needs.items():
        lines = [f"{pins[name]} --hash=sha256:{sha256[name]}" for name in sorted(names)]
        path = ROOT / "containers" / image / "requirements.lock"
        path.write_text("\n".join([IMAGE_HEAD.format(image=image), *lines]) + "\n", encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(lines)} packages")
    lock_torch(pins)
    return 0


if __name__ == "__main__":
    sys.exit(main())
