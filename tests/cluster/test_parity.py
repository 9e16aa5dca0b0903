"""Parity: what the packaged project's pods make over S3 and a server is what ``pyflyte run`` makes in a folder.

Run by ``make test-cluster``: each pod takes as long to start as its imports.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bard_core.store import artifacts, storage

from .runner import ROOT, PodFailed, Runner, inputs_of

PIPELINE, REEVALUATION = "workflows.pipeline.bard_pipeline", "workflows.reevaluate.reevaluate"


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


def page(root: str) -> str:
    """What a failed pipeline has left."""
    return storage.read_bytes(f"{root}/artifacts/failures/tiny.md").decode()


@pytest.mark.cluster
def test_a_failed_pipeline_names_its_error_keeps_what_it_has_and_goes_on(
    cluster: Runner, tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    """The bounded form: refused at first, then killed behind its dataset, which is a laptop's, then begun again."""
    from bard_core.config.sections.data import DataConfig
    from bard_core.data.prepare import prepare

    root = f"s3://{cluster.bucket}/first"
    config = tiny_config(**at(root))
    config["swd"]["teacher"] = "pbm-b16"  # no stage trains it: the pipeline's first task refuses
    with pytest.raises(PodFailed, match=r"swd\.teacher"):
        cluster.run(PIPELINE, inputs_of(PIPELINE, config), "refused")
    assert [pod.task for pod in cluster.pods] == ["tasks.runs.open_run", "tasks.failure.report_failure"]
    assert "swd.teacher" in page(root) and "nothing yet" in page(root)

    config["swd"]["teacher"] = "pbm-b4"
    cluster.doomed.add("workflows.pipeline.convert")
    with pytest.raises(PodFailed, match="killed by SIGKILL"):
        cluster.run(PIPELINE, inputs_of(PIPELINE, config), "killed")
    assert "workflows.pipeline.convert" in page(root) and "SIGKILL" in page(root) and "- prepare/dataset-" in page(root)
    local = prepare(DataConfig.model_validate(config["data"]), str(tmp_path / "dataset"))
    assert local.manifest_sha256 in artifacts_below(root).values()

    before, convert = len(cluster.pods), cluster.tasks.pop("workflows.pipeline.convert")
    with pytest.raises(KeyError, match="convert"):
        cluster.run(PIPELINE, inputs_of(PIPELINE, config), "again")
    cluster.tasks["workflows.pipeline.convert"] = convert
    again = [pod.task for pod in cluster.pods[before:]]
    assert again and "tasks.prepare.prepare_dataset" not in again, "what is finished is taken from storage"


@pytest.mark.cluster
def test_a_pipeline_of_pods_makes_the_artifacts_of_a_local_run(
    cluster: Runner, tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    """The whole; its distillation is killed once, and only that is trained by the run that goes on. Then all is judged again."""
    root = f"s3://{cluster.bucket}/whole"
    inputs = inputs_of(PIPELINE, tiny_config(**at(root)))
    cluster.doomed.add("tasks.swd.swd")
    with pytest.raises(PodFailed, match="killed by SIGKILL"):
        cluster.run(PIPELINE, inputs, "whole")
    assert "tasks.swd.swd" in page(root) and page(root).count("- models/") == 3 and page(root).count("- evaluate/") == 3
    before = len(cluster.pods)
    cluster.run(PIPELINE, inputs, "whole-again")
    trained = [
        pod.task for pod in cluster.pods[before:] if pod.task in ("tasks.source.train_source", "tasks.pbm.pbm", "tasks.swd.swd")
    ]
    assert trained == ["tasks.swd.swd"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_config()), encoding="utf-8")
    home = tmp_path / "home"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "FLYTE_"))}
    environment |= {"BARD_HOME": str(home), "FLYTE_SDK_LOCAL_SANDBOX": str(home / "flyte" / "sandbox")}
    program = str(Path(sys.executable).parent / "pyflyte")
    command = [program, "run", str(ROOT / "workflows" / "pipeline.py"), "bard_pipeline", "--inputs-file", str(path)]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=1500)
    remote, local = artifacts_below(root), artifacts_below(str(home))
    assert remote == local and len(local) > 4

    again = tiny_config(**at(root), evaluation={"max_samples": 2, "decoding": {"max_new_tokens": 8}})
    before = len(cluster.pods)
    said = cluster.run(REEVALUATION, inputs_of(REEVALUATION, again), "reevaluated")
    judged = Counter(pod.task for pod in cluster.pods[before:])
    assert judged["tasks.evaluate.finish_evaluation"] == 4, "source, B4, B8 and SWD B8 under the new protocol"
    assert "swd-b8" in said.literals["o0"].scalar.primitive.string_value
    before = len(cluster.pods)
    cluster.run(REEVALUATION, inputs_of(REEVALUATION, again), "reevaluated-again")
    assert not any("evaluate." in pod.task and "reevaluate." not in pod.task for pod in cluster.pods[before:]), "nothing is due"
