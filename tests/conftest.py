"""Every test runs with its own home folder, without Flyte's cache, on one thread, and without a network to wait for."""

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
)
os.environ.pop("MLFLOW_TRACKING_URI", None)
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")


LONGEST_FIRST = ("workflows", "tasks", "cluster")  # folders of whole pipelines: no process is left with one at the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--no-loadscope-reorder`` xdist hands out files in this order."""
    ranks = {folder: rank for rank, folder in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.relative_to(Path(__file__).parent).parts[0], len(ranks)))


class Faults:
    """One part's share of the table of ``make test-faults``: what was injected, how often, and what became of it."""

    def __init__(self) -> None:
        self.times: Counter[tuple[str, str]] = Counter()
        self.failed: list[str] = []
        self.started = time.monotonic()

    def survived(self, fault: str, outcome: str, times: int = 1) -> None:
        """Note it once the test has seen that nothing was lost, that it was told, and that nobody had to lend a hand."""
        self.times[fault, outcome] += times

    def write(self, path: Path, again: bool) -> None:
        """For ``benchmarks/_faults.py``, which brings the parts together; ``again``: beside what did not fail the last time."""
        minutes, repaired = (time.monotonic() - self.started) / 60, []
        if again:
            last = json.loads(path.read_text(encoding="utf-8"))
            minutes, repaired = minutes + last["minutes"], sorted({*last["repaired"], *last["failed"]} - {*self.failed})
            for row in last["faults"]:
                self.times[row["fault"], row["outcome"]] += row["times"]
        rows = [{"fault": fault, "times": n, "outcome": outcome} for (fault, outcome), n in sorted(self.times.items())]
        body = {"minutes": round(minutes, 1), "failed": self.failed, "repaired": repaired, "faults": rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


LEDGER = Faults()


@pytest.fixture
def faults() -> Faults:
    return LEDGER


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed and item.nodeid not in LEDGER.failed:
        LEDGER.failed.append(item.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := os.environ.get("BARD_FAULTS_TABLE"):
        LEDGER.write(Path(path), session.config.getoption("lf"))


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


@pytest.fixture(scope="session")
def lab_dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small prepared lab dataset."""
    from bard_core.config.sections.data import DataConfig, LabWorldConfig
    from bard_core.data.prepare import prepare

    world = LabWorldConfig(train_images=8, eval_images=8, cell_px=32)
    return prepare(DataConfig(lab=world), str(tmp_path_factory.mktemp("lab") / "dataset"))


@pytest.fixture(scope="session")
def place_dataset(lab_dataset: Any) -> Callable[[Path], None]:
    """``place_dataset(home)``: the small lab dataset where a demo would have it."""

    def place(home: Path) -> None:
        folder, prepared = home / "artifacts" / "prepare", Path(lab_dataset.uri)
        folder.mkdir(parents=True)
        (folder / "dataset-1").symlink_to(prepared)
        (folder / "units").symlink_to(prepared.parent / "units")

    return place


@pytest.fixture(scope="session")
def make_model(lab_dataset: Any) -> Callable[..., Any]:
    """``make_model(folder, block_size, seed)``: a random lab model, committed; block size 1 is the source."""
    from transformers import AutoProcessor

    from bard_core.config.sections.source import LabModelConfig
    from bard_core.diffusion.names import MASK_TOKEN
    from bard_core.lab.model import build_lab_model
    from bard_core.models import BardSettings, record_settings
    from bard_core.store import artifacts
    from bard_core.store.refs import ModelRef

    processor: Any = AutoProcessor.from_pretrained(Path(lab_dataset.uri) / "processor")
    tiny = LabModelConfig(
        hidden_size=32, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate_size=32, vision_hidden_size=16, vision_heads=1
    )

    def make(folder: Path, block_size: int, seed: int = 0) -> ModelRef:
        model = build_lab_model(tiny, processor, 128, seed)
        record_settings(model, BardSettings(block_size, processor.tokenizer.convert_tokens_to_ids(MASK_TOKEN)))
        staging = folder.with_name(f"{folder.name}.staging")
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        manifest = artifacts.commit_directory(staging, str(folder), kind="model")
        return ModelRef(
            uri=str(folder),
            manifest_sha256=manifest.digest,
            stage="source" if block_size == 1 else "pbm",
            block_size=block_size,
            parent_sha256=None,
        )

    return make


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., dict[str, Any]]:
    """``tiny_config(steps, **sections)``: configs/lab.yaml with few images: source, B4, B8 and a student of B8."""
    import yaml

    path = Path(__file__).parent.parent / "configs" / "lab.yaml"

    def make(steps: int = 2, **sections: Any) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        short = {"steps": steps, "batch_size": 4, "checkpoint_every": max(2, steps // 4), "log_every": 1}
        train = {**config["pbm"]["stages"][0]["train"], **short}
        config["name"] = "tiny"
        config["data"]["lab"].update(train_images=16, eval_images=6)
        config["source"]["train"].update(short)
        config["pbm"]["clean_attention"] = "block"
        config["pbm"]["stages"] = [{"block_size": size, "train": dict(train)} for size in (4, 8)]
        config["swd"].update(students=["pbm-b8"], train={**config["swd"]["train"], **short})
        config["evaluation"].update(speed_samples=1, batch_size=4, sweep_thresholds=[])
        config["evaluation"]["decoding"]["max_new_tokens"] = 16
        for name, values in sections.items():
            config[name] = {**config.get(name, {}), **values}
        return config

    return make
