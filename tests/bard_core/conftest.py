"""Shared by the library's tests: a home of their own, and an S3 API on loopback."""

import http.server
import importlib.util
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.config.sections.storage import TrackingConfig
from bard_core.diffusion.layout import CLEAN, NOISY, TokenTable, attention_mask, sample_layout
from bard_core.evaluation.evaluate import protocol_digest
from bard_core.evaluation.suites import suite_digest, suite_of
from bard_core.store import artifacts
from bard_core.store.refs import BenchmarkScore, DatasetRef, EvalResult, ModelRef

from .hub import Hub


@pytest.fixture
def bard_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh $BARD_HOME with no MLflow server configured."""
    home = tmp_path / "home"
    monkeypatch.setenv("BARD_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A headless browser (docs/browser.py)."""
    spec = importlib.util.spec_from_file_location("browser", Path(__file__).parents[2] / "docs" / "browser.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.CHROMIUM is None:
        pytest.skip("no browser here: apt-get install chromium")
    page = module.Browser(tmp_path / "profile")
    yield page
    page.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of an S3 API that lives as long as the tests."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_root(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, reached through the usual AWS_* variables."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bard-{uuid.uuid4().hex}"
    s3fs.S3FileSystem(client_kwargs={"endpoint_url": s3_server}).mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on loopback that huggingface_hub talks to."""
    import huggingface_hub.constants as constants

    from bard_core.data import download

    handler = type("Handler", (Hub,), {"asked": [], "committed": {}, "spoiled": 0, "torn": 0})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", constants.ENDPOINT)
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    yield handler
    server.shutdown()
    server.server_close()


class Judge:
    """Writes evaluations of invented checkpoints, as ``evaluate`` does, without a model."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        counts = {"num_train": 1, "num_eval": 1, "epoch_samples": 1}
        self.dataset = DatasetRef(uri=str(folder / "data"), manifest_sha256=self._commit("data"), **counts)
        self.source = self.model("source", 1)

    def model(self, stage: Any, block_size: int) -> ModelRef:
        """New weights."""
        self.count += 1
        name = f"m{self.count}"
        ref = {"uri": str(self.folder / name), "manifest_sha256": self._commit(name)}
        return ModelRef(**ref, stage=stage, block_size=block_size, parent_sha256=None)

    def _commit(self, name: str) -> str:
        staging = self.folder / "staging"
        staging.mkdir()
        (staging / "file").write_text(f"{self.folder}/{name}")
        return artifacts.commit_directory(staging, str(self.folder / name), kind="model").digest

    def result(
        self, model: ModelRef, config: EvaluationConfig, right: int, speedup: float, of: int = 1000, missing: tuple[str, ...] = ()
    ) -> EvalResult:
        """``right`` answers of ``of`` are right: the first ones."""
        score = BenchmarkScore(
            name="lab", task="bard_lab", task_version="1.0", prompt=None, metrics={"exact": right / of}, accuracy=right / of,
            accuracy_stderr=0.01, num_samples=of, crashed=0, real_tokens=4, forwards=2, dataset_fingerprint="f" * 64,
        )  # fmt: skip
        digest = suite_digest(suite_of(config), self.dataset.key)
        fields: dict[str, Any] = {
            "model": model, "suite": "lab", "suite_digest": digest, "benchmarks": (score,), "missing": missing,
            "accuracy": right / of, "accuracy_stderr": 0.01, "num_samples": of, "tokens_per_forward": 2.0 * speedup,
            "tokens_per_s": 100.0 * speedup, "ar_tokens_per_s": 100.0, "speedup": speedup,
        }  # fmt: skip
        staging = self.folder / "staging"
        staging.mkdir()
        plain = EvalResult(uri="", manifest_sha256="", **fields).model_dump(mode="json", exclude={"uri", "manifest_sha256"})
        ratios = [speedup * (1 + 0.01 * (i % 3 - 1)) for i in range(12)]
        (staging / "results.json").write_text(json.dumps({**plain, "speed": {"ratios": ratios}}))
        records = [{"benchmark": "lab", "doc_id": i, "reference": "x", "score": float(i < right)} for i in range(of)]
        (staging / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        uri = str(self.folder / uuid.uuid4().hex)
        manifest = artifacts.commit_directory(staging, uri, kind="evaluation")
        return EvalResult(uri=uri, manifest_sha256=manifest.digest, **fields)

    def register(
        self, tracking: TrackingConfig, config: EvaluationConfig, model: ModelRef, right: int, speedup: float, **extra: Any
    ) -> int:
        """Log a result and register its model; returns the version."""
        from bard_core.tracking import log_evaluation, register, stage_run

        result = self.result(model, config, right, speedup, **extra)
        with stage_run(tracking, None, "evaluate", "evaluate", {}) as run:
            log_evaluation(tracking, run, result, protocol_digest(config, self.dataset))
        return register(tracking, model, self.source, self.dataset)


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return Judge(tmp_path)


@pytest.fixture(scope="session")
def training_mask() -> Callable[..., Tensor]:
    """``training_mask(prefix, response, block_size, total=None)``: the mask of ``[prefix | clean response | noisy response]``.

    Boolean [total, total] as in the paper's figure 2, with no tail; rows and columns past the tokens are all False.
    """

    def mask(prefix: int, response: int, block_size: int, total: int | None = None) -> Tensor:
        clean = prefix + response
        layout = sample_layout(clean, [(prefix, clean)] if response else [], block_size)
        noisy = ~layout.tail_R
        table = TokenTable(
            sample=torch.zeros(clean + response, dtype=torch.long),
            position=torch.cat([torch.arange(clean), layout.source_R[noisy]]),
            block=torch.cat([layout.clean_block_N, layout.block_R[noisy]]),
            role=torch.tensor([CLEAN] * clean + [NOISY] * response),
        )
        used = clean + response
        whole = torch.zeros(total or used, total or used, dtype=torch.bool)
        whole[:used, :used] = attention_mask(table, table)
        return whole

    return mask
