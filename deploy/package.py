"""Compile workflows and tasks for a Flyte cluster, without one: dist/bard-flyte.tgz.

    make package

Every stage's image must stand in containers/images.lock by digest: what is registered then runs exactly those bytes.
"""

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "containers" / "images.lock"
OUTPUT = ROOT / "dist" / "bard-flyte.tgz"
BY_DIGEST = re.compile(r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}")


def images(lock: Path) -> dict[str, str]:
    """Stage -> image by digest.

    Raises:
        ValueError: a stage has no image, or one that is not named by digest; says which and what to do.
    """
    found: dict[str, str] = yaml.safe_load(lock.read_text(encoding="utf-8"))
    missing = [stage for stage, image in found.items() if not image]
    if missing:
        raise ValueError(
            f"{lock}: no image yet for {', '.join(missing)}. Build and push it (containers/README.md), then write its "
            "repository@sha256:digest there."
        )
    loose = [f"{stage} ({image})" for stage, image in found.items() if not BY_DIGEST.fullmatch(image)]
    if loose:
        raise ValueError(f"{lock}: not named by digest: {', '.join(loose)}. Write repository@sha256:<64 hex digits>.")
    return found


def package(found: dict[str, str], output: Path) -> None:
    """Run ``pyflyte package`` over workflows and tasks. Raises CalledProcessError when something does not compile."""
    output.parent.mkdir(parents=True, exist_ok=True)
    flags = [flag for stage, image in found.items() for flag in ("--image", f"{stage}={image}")]
    command = [str(Path(sys.executable).parent / "pyflyte"), "--pkgs", "workflows", "--pkgs", "tasks", "package"]
    subprocess.run([*command, *flags, "--source", str(ROOT), "--output", str(output), "--force"], cwd=ROOT, check=True)


def main() -> int:
    try:
        package(images(LOCK), OUTPUT)
    except ValueError as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    print(f"{OUTPUT}\nregister it as deploy/README.md says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
