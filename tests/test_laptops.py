"""A clone on any laptop: one lock for its platforms, a set-up without CUDA, and a path that make can take."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements" / "dev.lock").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def lock() -> Any:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "containers" / "lock.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def at(target: tuple[str, str, str], lock: Any) -> set[str]:
    """Names that the lock has there."""
    items = [Requirement(line.split("#")[0]) for line in LOCK.splitlines() if line and not line.startswith("#")]
    where = lock.environment(target)
    return {canonicalize_name(item.name) for item in items if item.marker is None or item.marker.evaluate(where)}


def test_the_lock_is_complete_on_every_platform_and_has_no_cuda_where_there_is_none(lock: Any) -> None:
    """By what the packages that are installed here say they need there."""
    described = lock.project()
    lines = [*lock.BUILD, *described["dependencies"], *described["optional-dependencies"]["dev"]]
    for target in lock.TARGETS:
        assert at(target, lock) == lock.needed(lines, lock.environment(target)), f"{target}: run make lock"
        cuda = {name for name in at(target, lock) if name.startswith(lock.CUDA)}
        assert bool(cuda) == (target[0] == "linux"), target


def test_a_version_that_is_held_back_names_who_holds_it(lock: Any) -> None:
    told = dict(re.findall(r"^(\S+)==.*  # (\w+) takes \S+$", LOCK, re.MULTILINE))
    assert {canonicalize_name(name): by for name, by in told.items()} == lock.HELD
    for name, by in lock.HELD.items():
        assert re.search(r"<|==", lock.bound(by, name)), f"{by} no longer holds {name} back"


def test_what_only_some_platforms_need_needs_a_condition(lock: Any) -> None:
    linux, python = {t for t in lock.TARGETS if t[0] == "linux"}, {t for t in lock.TARGETS if t[2] == "3.11"}
    assert (lock.marker(linux), lock.marker(python), lock.marker(set(lock.TARGETS))) == (
        'sys_platform == "linux"', 'python_version < "3.12"', "",
    )  # fmt: skip
    with pytest.raises(ValueError, match="add a condition"):
        lock.marker(linux & python)


def recipe(*arguments: str) -> str:
    made = ["make", "-n", "-B", "-C", str(ROOT), "setup", *arguments]
    return subprocess.run(made, capture_output=True, text=True, check=True).stdout


def test_set_up_without_cuda_installs_the_same_torch_from_its_own_index_and_nothing_of_cuda(tmp_path: Path) -> None:
    torch = re.findall(r"^(?:torch|torchvision)==\S+", LOCK, re.MULTILINE)
    plain, cpu = recipe(), recipe("TORCH=cpu")
    assert "whl/cpu" not in plain and f"--index-url https://download.pytorch.org/whl/cpu {' '.join(torch)}\n" in cpu
    for text, kept in ((plain, True), (cpu, False)):
        (line,) = [line for line in text.splitlines() if line.startswith("grep")]
        command = line.replace(f"{ROOT}/.venv/requirements.txt", str(tmp_path / "requirements.txt"))
        subprocess.run(["bash", "-c", command], check=True)
        found = (tmp_path / "requirements.txt").read_text()
        assert ("nvidia-" in found) == kept == ("triton==" in found) and torch[0] in found


@pytest.mark.parametrize(("name", "taken"), [("a clone", False), ("klön", True)])
def test_a_path_with_a_space_is_refused_in_one_line(name: str, taken: bool, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path / name)
    for where, more in ((tmp_path / name, []), (tmp_path, ["-C", name])):
        done = subprocess.run(["make", *more, "help"], cwd=where, capture_output=True, text=True, check=False)
        said = [line for line in done.stderr.splitlines() if "directory" not in line]
        assert (done.returncode == 0) == taken, done.stderr
        assert taken or (len(said) == 1 and "has a space in it: move this clone" in said[0])
    home = subprocess.run(["make", "-C", str(ROOT), "help", "BARD_HOME=/my home"], capture_output=True, text=True, check=False)
    assert home.returncode == 2 and "BARD_HOME is /my home" in home.stderr
