"""The pipeline on Flyte 2 makes what it makes on Flyte 1. Run by ``make test-flyte2``, in an environment that has Flyte 2 too."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bard_core.store import artifacts

ROOT = Path(__file__).resolve().parents[2]


def models(home: Path) -> dict[str, str]:
    """``name`` -> digest of every model and dataset below a home folder."""
    found = [path.parent for kind in ("prepare", "models") for path in home.glob(f"artifacts/{kind}/*/manifest.json")]
    return {folder.name: artifacts.read_manifest(str(folder)).digest for folder in found}


@pytest.mark.outside
def test_the_same_artifacts_on_flyte_1_and_on_flyte_2(tmp_path: Path, tiny_config: Callable[..., Any]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_config()), encoding="utf-8")
    pyflyte, workflow = str(Path(sys.executable).parent / "pyflyte"), str(ROOT / "workflows" / "pipeline.py")
    one = [pyflyte, "run", workflow, "bard_pipeline", "--inputs-file", str(config)]
    two = [os.environ["FLYTE2"], str(ROOT / "deploy" / "flyte2.py"), str(config)]
    made = []
    for number, command in enumerate((one, two), start=1):
        home = tmp_path / f"home{number}"
        environment = {**os.environ, "BARD_HOME": str(home), "FLYTE_SDK_LOCAL_SANDBOX": str(home / "flyte" / "sandbox")}
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=1500)
        made.append(models(home))
        assert list(home.glob("artifacts/report/*/report.json"))
    assert made[0] == made[1] and len(made[0]) == 5
