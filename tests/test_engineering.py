"""The workshop holds together: locks cover what is declared, images what tasks name, make what the README promises."""

import importlib
import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGES: dict[str, str] = yaml.safe_load((ROOT / "containers" / "images.lock").read_text(encoding="utf-8"))
DIGEST = "ghcr.io/example/bard@sha256:" + "0" * 64


PIN = r"[A-Za-z0-9._-]+==[^\s;@]+( --hash=sha256:[0-9a-f]{64}| ; [a-z_]+ (==|<) \"[\w.]+\")?(  # \w+ takes \S+)?"


def load_script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(path: str) -> dict[str, Version]:
    """Canonical name -> exact version; every line must be a pin, with or without a hash."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    loose = [line for line in wanted if not re.fullmatch(PIN, line)]
    assert loose == [], f"{path}: not exact pins"
    return {canonicalize_name(name): Version(version) for name, version in (line.split(" ")[0].split("==") for line in wanted)}


def test_extras_that_messages_advise_exist_and_bring_the_package_that_lacks() -> None:
    import bard_core.cli.doctor as doctor

    advised = {
        (place, extra)
        for place in (ROOT / "bard_core").rglob("*.py")
        for extra in re.findall(r"pip install 'bard\[(\w+)\]'", place.read_text(encoding="utf-8"))
    }
    extras = PROJECT["optional-dependencies"]
    assert {extra for _, extra in advised} == {"evaluate", "serve"} <= extras.keys()
    pairs = re.findall(rf'\("(\w+)", "({"|".join(extras)})"\)', Path(doctor.__file__).read_text(encoding="utf-8"))
    assert len(pairs) >= 6 and all(canonicalize_name(name) in brought_by(extra) for name, extra in pairs)


def brought_by(extra: str) -> set[str]:
    """The packages that an extra names, those of the extras in it too."""
    found: set[str] = set()
    for text in PROJECT["optional-dependencies"][extra]:
        wanted = Requirement(text)
        own = wanted.name == PROJECT["name"]
        found |= {name for inner in wanted.extras for name in brought_by(inner)} if own else {canonicalize_name(wanted.name)}
    return found


def test_dev_lock_covers_everything_declared() -> None:
    locked = pins("requirements/dev.lock")
    extras = PROJECT["optional-dependencies"].values()
    declared = [Requirement(line) for line in (*PROJECT["dependencies"], *(line for extra in extras for line in extra))]
    missing = [str(r) for r in declared if r.name != "bard" and locked.get(canonicalize_name(r.name)) is None]
    outside = [str(r) for r in declared if (pin := locked.get(canonicalize_name(r.name))) and not r.specifier.contains(pin)]
    assert (missing, outside) == ([], [])


@pytest.mark.parametrize("stage", sorted(IMAGES))
def test_a_stage_lock_has_the_versions_of_dev_lock(stage: str) -> None:
    locked, dev = pins(f"containers/{stage}/requirements.lock"), pins("requirements/dev.lock")
    assert {name: dev.get(name) for name in locked} == locked, "run make lock"


def needed_at_import(path: Path) -> set[str]:
    """Installed packages that importing one of our files imports, through whichever of our files."""
    imports_of = load_script("tests/test_layers.py").imports_of
    waiting, seen, found = [path], set[Path](), set[str]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for item in imports_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()):
            top = item.module.split(".")[0]
            if item.at_import and top in ("bard_core", "tasks", "workflows"):
                parts = item.module.split(".")
                names = ["/".join(parts[:end]) + tail for end in range(1, len(parts) + 1) for tail in (".py", "/__init__.py")]
                waiting += [ROOT / name for name in names if (ROOT / name).is_file()]
            elif item.at_import and top not in sys.stdlib_module_names:
                found.add(item.module)
    return found


@pytest.mark.parametrize("stage", sorted(IMAGES))
def test_a_stage_image_holds_what_its_tasks_import(stage: str) -> None:
    """A task is started by importing its file, so all that the file imports must be in the image."""
    locked, owners = set(pins(f"containers/{stage}/requirements.lock")), packages_distributions()
    if "torch-cpu.lock" in (ROOT / "containers" / stage / "Dockerfile").read_text(encoding="utf-8"):
        locked |= set(pins("containers/torch-cpu.lock"))
    files = [path for folder in ("tasks", "workflows") for path in (ROOT / folder).glob("*.py")]
    names_it = rf'(stage_task|ray_task|stage_dynamic|image)\("{stage}"'
    mine = [path for path in files if re.search(names_it, path.read_text(encoding="utf-8"))]
    needed = {module.split(".")[0] for path in mine for module in needed_at_import(path)}
    assert mine and "flytekit" in needed
    assert [name for name in sorted(needed) if not locked & {canonicalize_name(owner) for owner in owners[name]}] == []


def test_images_lock_covers_exactly_the_stages_that_tasks_name() -> None:
    sources = [path.read_text(encoding="utf-8") for folder in ("tasks", "workflows") for path in (ROOT / folder).glob("*.py")]
    named = set(re.findall(r'(?:stage_task|ray_task|stage_dynamic|image)\("([a-z]+)"', "\n".join(sources)))
    assert named == set(IMAGES)
    assert set(IMAGES) | {"one", "tracking"} == {path.parent.name for path in (ROOT / "containers").glob("*/Dockerfile")}


def test_make_help_lists_the_targets_with_words() -> None:
    shown = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"^  (\S+)\s+(\S.*)$", shown, re.MULTILINE))
    assert {"help", "demo", "test", "lint", "ui", "package", "clean"} <= set(found)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE)) <= set(found)


def test_entry_points_lead_somewhere() -> None:
    groups = {**PROJECT.get("entry-points", {}), "console_scripts": PROJECT.get("scripts", {})}
    for target in (target for group in groups.values() for target in group.values()):
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), target


def test_values_and_workflows_are_yaml_and_ray_stays_inside() -> None:
    for path in [*(ROOT / "deploy").glob("*.yaml"), *(ROOT / ".github" / "workflows").glob("*.yml")]:
        list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    ray = yaml.safe_load((ROOT / "deploy" / "flyte-values.yaml").read_text(encoding="utf-8"))["configuration"]["inline"][
        "plugins"
    ]["ray"]
    assert ray["shutdownAfterJobFinishes"] is True and ray["serviceType"] == "ClusterIP"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('train: ""\nprepare: ""\n', "no image yet for train, prepare"),
        ("train: ghcr.io/example/bard:latest\n", "not named by digest: train"),
    ],
)
def test_package_refuses_an_image_that_is_missing_or_loose(tmp_path: Path, text: str, complaint: str) -> None:
    lock = tmp_path / "images.lock"
    lock.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        load_script("deploy/package.py").images(lock)


@pytest.mark.slow
def test_package_compiles_every_task_with_the_image_of_its_stage(tmp_path: Path) -> None:
    output = tmp_path / "bard.tgz"
    load_script("deploy/package.py").package(dict.fromkeys(IMAGES, DIGEST), output)
    with tarfile.open(output) as archive:
        bodies = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]
    assert any("bard_pipeline" in name for name in bodies)
    tasks = {name: body for name, body in bodies.items() if "_tasks." in name}
    assert tasks and all(DIGEST.encode() in body for body in tasks.values())
    assert not any(b"{{.image" in body for body in bodies.values())
