"""Write the locks from the installed environment: requirements/dev.lock, and containers/<image>/requirements.lock with hashes.

    make lock        # after a change of the dependencies in pyproject.toml was installed into .venv
    make lock-check  # asks the index whether every platform and Python of dev.lock finds its files
    make lock-torch  # torch-cpu.lock alone, with hashes, on any machine that reaches PyTorch's index

dev.lock is one for all laptops: what is needed on Linux alone, or by Python 3.11 alone, has a marker, by what the installed
packages say of themselves. A version that a known conflict holds back names who does.

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
from collections.abc import Iterator
from importlib.metadata import distribution, distributions
from itertools import product
from pathlib import Path
from typing import Any

from packaging.markers import Marker
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
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
PYTHONS, PATCH = ("3.11", "3.12"), 9  # some packages want a late patch release
WHEELS = {  # what pip calls the files of a platform
    ("linux", "x86_64"): [*(f"manylinux_2_{minor}_x86_64" for minor in range(35, 16, -1)), "manylinux2014_x86_64"],
    ("linux", "aarch64"): [*(f"manylinux_2_{minor}_aarch64" for minor in range(35, 16, -1)), "manylinux2014_aarch64"],
    ("darwin", "arm64"): ["macosx_14_0_arm64"],
}
HELD = {  # versions that are not the newest, and whose requirement holds them
    "av": "lmms_eval",
    "botocore": "aiobotocore",
    "dill": "datasets",
    "fsspec": "datasets",
    "marshmallow": "flytekit",
    "protobuf": "wandb",
    "wandb": "lmms_eval",
}
Target = tuple[str, str, str]  # sys_platform, platform_machine, python_version
TARGETS: tuple[Target, ...] = tuple((*platform, python) for platform, python in product(PLATFORMS, PYTHONS))
DEV_HEAD = (
    "# Exact versions of the developer environment: Linux x86-64 and arm64, macOS arm64, Python 3.11 and 3.12. Written by\n"
    "# containers/lock.py; install with: pip install -r requirements/dev.lock"
)
IMAGE_HEAD = "# Exact versions and hashes of the image {image} (Linux x86-64, Python 3.11). Written by containers/lock.py."
CPU_HEAD = f"# Builds without CUDA, from {CPU_INDEX}. Written by containers/lock.py."


def installed() -> dict[str, str]:
    """``name==version`` of every distribution of this environment but Bard and pip, by canonical name."""
    found = {canonicalize_name(dist.name): f"{dist.name}=={dist.version}" for dist in distributions()}
    return {name: pin for name, pin in sorted(found.items()) if name not in ("bard", "pip")}


def environment(target: Target) -> dict[str, str]:
    """What markers are evaluated against there."""
    system, machine, python = target
    names = {"linux": "Linux", "darwin": "Darwin"}
    return {
        "sys_platform": system, "platform_system": names[system], "platform_machine": machine,
        "python_version": python, "python_full_version": f"{python}.{PATCH}",
    }  # fmt: skip


def needed(lines: list[str], where: dict[str, str], skip: tuple[str, ...] = ()) -> set[str]:
    """Canonical names of all that these requirements need there, Bard and names that begin with ``skip`` left out."""
    extras = project()["optional-dependencies"]
    waiting = [Requirement(line) for line in lines]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if skip and name.startswith(skip):
            continue
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            more = extras.get(extra, []) if name == "bard" else distribution(name).requires or []
            items = [Requirement(line) for line in more]
            waiting += [item for item in items if item.marker is None or item.marker.evaluate({**where, "extra": extra})]
    return {name for name, _ in seen} - {"bard"}


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def closure(image: str) -> set[str]:
    """Canonical names of everything that an image's lock holds: what its extras need on this machine, Bard left out."""
    described = project()
    own = [] if image in WITHOUT_BARD else [*BUILD, *described["dependencies"]]
    lines = [*own, *(line for extra in IMAGES[image] for line in described["optional-dependencies"][extra])]
    skip = CUDA if image in WITHOUT_CUDA else ()
    return needed(lines, {}, skip) - set(CPU_BUILDS if image in WITHOUT_CUDA else ())


def marker(where: set[Target]) -> str:
    """The marker of what is needed at these targets; empty where it is needed everywhere.

    Raises:
        ValueError: no single condition tells them from the others.
    """
    conditions = [
        "",
        'sys_platform == "linux"',
        'sys_platform == "darwin"',
        'python_version < "3.12"',
        'python_version >= "3.12"',
    ]
    for condition in conditions:
        if where == {target for target in TARGETS if not condition or Marker(condition).evaluate(environment(target))}:
            return condition
    raise ValueError(f"needed at {sorted(where)} alone: add a condition to marker() that says so")


def dev_lines(pins: dict[str, str]) -> Iterator[str]:
    """Lines of dev.lock: pin, marker, and who holds the version back."""
    described = project()
    lines = [*BUILD, *described["dependencies"], *described["optional-dependencies"]["dev"]]
    at = {target: needed(lines, environment(target)) for target in TARGETS}
    for name in sorted(set().union(*at.values())):
        condition = marker({target for target in TARGETS if name in at[target]})
        line = f"{pins[name]} ; {condition}" if condition else pins[name]
        yield f"{line}  # {HELD[name]} takes {bound(HELD[name], name)}" if name in HELD else line


def bound(holder: str, name: str) -> str:
    """What versions of a package its holder takes on this machine."""
    items = [Requirement(line) for line in distribution(holder).requires or []]
    return next(
        str(item.specifier)
        for item in items
        if canonicalize_name(item.name) == name and (item.marker is None or item.marker.evaluate({"extra": ""}))
    )


def check() -> int:
    """Ask the index for the files of every target; returns how many lack some, and says which."""
    text = (ROOT / "requirements" / "dev.lock").read_text(encoding="utf-8")
    locked = [Requirement(line.split("#")[0]) for line in text.splitlines() if line and not line.startswith("#")]
    lacking = 0
    for target in TARGETS:
        pins = [f"{one.name}{one.specifier}" for one in locked if one.marker is None or one.marker.evaluate(environment(target))]
        platforms = [option for name in WHEELS[target[:2]] for option in ("--platform", name)]
        try:
            hashes(pins, "--python-version", f"{target[2]}.{PATCH}", "--implementation", "cp", *platforms)
            print(f"{' '.join(target)}: all {len(pins)} are there", flush=True)
        except subprocess.CalledProcessError:
            lacking += 1
            print(f"{' '.join(target)}: see above", flush=True)
    return lacking


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
    (ROOT / "requirements" / "dev.lock").write_text("\n".join([DEV_HEAD, *dev_lines(pins)]) + "\n", encoding="utf-8")
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
    sys.exit(check() if sys.argv[1:] == ["--check"] else main())
