"""Every test runs with its own home folder, without Flyte's cache, on one thread, and without a network to wait for."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Set before anything imports torch, flytekit or tasks.settings: they read these once. A test that starts processes hands them on.
HOME = Path(tempfile.mkdtemp(prefix="bard-tests-"))
os.environ.update(
    BARD_HOME=str(HOME),
    FLYTE_SDK_LOCAL_SANDBOX=str(HOME / "flyte" / "sandbox"),
    FLYTE_LOCAL_CACHE_ENABLED="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_CACHE=str(HOME / "datasets"),
    MLFLOW_DISABLE_TELEMETRY="true",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
)
os.environ.pop("MLFLOW_TRACKING_URI", None)
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture
def bard_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder for one test."""
    monkeypatch.setenv("BARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The golden cases: ``$BARD_GOLDEN_DIR``, else ``tests/golden``."""
    folder = Path(os.environ.get("BARD_GOLDEN_DIR") or Path(__file__).parent / "golden")
    if not (folder / "masks.npz").is_file():
        pytest.fail(f"{folder} holds no golden cases (masks.npz ...): point BARD_GOLDEN_DIR at a folder that does")
    return folder
