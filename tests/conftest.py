"""Shared by all tests: a home folder of their own, quiet threads, the golden folder."""

import os
import tempfile
from pathlib import Path

# Before anything imports bard_core or flytekit: tests never touch the user's artifacts, metrics or Flyte cache.
_HOME = tempfile.mkdtemp(prefix="bard-tests-")
os.environ["BARD_HOME"] = _HOME
os.environ.setdefault("FLYTE_SDK_LOCAL_SANDBOX", f"{_HOME}/flyte/sandbox")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("MLFLOW_TRACKING_URI", None)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def bard_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder for one test."""
    monkeypatch.setenv("BARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Golden cases computed with the paper's code; ``BARD_GOLDEN_DIR`` names another set of the same shape."""
    return Path(os.environ.get("BARD_GOLDEN_DIR") or Path(__file__).parent / "golden")
