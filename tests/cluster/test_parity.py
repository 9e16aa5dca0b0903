"""Parity: what the packaged project's pods make over S3 and a server is what ``pyflyte run`` makes in a folder.

Run by ``make test-cluster``: each pod takes as long to start as its imports.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bard_core.store import artifacts, storage

from .runner import ROOT, PodFailed, Runner, inputs_of

PIPELINE = "workflows.pipeline.bard_pipeline"


def at(root_uri: str) -> dict[str, Any]:
    """The sections that put everything below a place."""
    return {"storage_config": {"root_uri": root_uri}, "compute": {"checkpoints": {"root_uri": f"{root_uri}/checkpoints"}}}


def artifacts_below(root: str) -> dict[str, str]:
    """``kind/name`` -> digest of every artifact of a run but its report, which says where things are."""
    found = {}
    for name in storage.list_files(f"{root}/artifacts"):
        if name.endswith("/manifest.json") and not name.startswith(("report/", "evaluate/", "benchmarks/")):
            folder = name.removesuffix("/manifest.json")
            found[folder] = artifacts.read_manifest(f"{root}/artifacts/{folder}").digest
    return found


@pytest.mark.cluster
def test_the_first_pods_prepare_the_dataset_that_a_laptop_prepares(
    cluster: Runner, tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    from bard_core.config.sections import DataConfig
    from bard_core.data.prepare import prepare

    config = tiny_config(**at(f"s3://{cluster.bucket}/first"))
    config["swd"]["teacher"] = "pbm-b16"  # no stage trains it: the pipeline's first task refuses
    with pytest.raises(PodFailed, match=r"swd\.teacher"):
        cluster.run(PIPELINE, inputs_of(PIPELINE, config), "refused")
    assert [pod.task for pod in cluster.pods] == ["tasks.runs.open_run", "tasks.failure.report_failure"]
    page = storage.read_bytes(f"s3://{cluster.bucket}/first/artifacts/failures/tiny.md").decode()
    assert "swd.teacher" in page and "nothing yet" in page
    config["swd"]["teacher"] = "pbm-b4"
    stop_after = {**cluster.tasks}
    cluster.tasks.pop("workflows.pipeline.convert")
    with pytest.raises(KeyError, match="convert"):
        cluster.run(PIPELINE, inputs_of(PIPELINE, config), "first")
    cluster.tasks = stop_after
    local = prepare(DataConfig.model_validate(config["data"]), str(tmp_path / "dataset"))
    assert local.manifest_sha256 in artifacts_below(f"s3://{cluster.bucket}/first").values()


@pytest.mark.cluster
def test_a_pipeline_of_pods_makes_the_artifacts_of_a_local_run(
    cluster: Runner, tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    cluster.run(PIPELINE, inputs_of(PIPELINE, tiny_config(**at(f"s3://{cluster.bucket}/whole"))), "whole")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_config()), encoding="utf-8")
    home = tmp_path / "home"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "FLYTE_"))}
    environment |= {"BARD_HOME": str(home), "FLYTE_SDK_LOCAL_SANDBOX": str(home / "flyte" / "sandbox")}
    program = str(Path(sys.executable).parent / "pyflyte")
    command = [program, "run", str(ROOT / "workflows" / "pipeline.py"), "bard_pipeline", "--inputs-file", str(path)]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=1500)
    remote, local = artifacts_below(f"s3://{cluster.bucket}/whole"), artifacts_below(str(home))
    assert remote == local and len(local) > 4
