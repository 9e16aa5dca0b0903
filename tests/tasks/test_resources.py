"""No task is bare: what Flyte would be told of every task and dynamic workflow, read from the packaged protobufs."""

import importlib.util
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from flyteidl.admin import task_pb2
from google.protobuf.json_format import MessageToDict

from bard_core.config.sections.compute import ComputeConfig
from tasks.ray_cluster import cluster
from tasks.resources import GRACE_S, QUEUE_LABEL, SECRET, pod

ROOT = Path(__file__).resolve().parents[2]
NEEDED_MIB = 1100  # what importing a task takes, as measured


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Task name -> its compiled template."""
    spec = importlib.util.spec_from_file_location("package", ROOT / "deploy" / "package.py")
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    images = yaml.safe_load((ROOT / "containers" / "images.lock").read_text(encoding="utf-8"))
    output = tmp_path_factory.mktemp("package") / "bard.tgz"
    package.package(dict.fromkeys(images, "example.org/bard@sha256:" + "0" * 64), output)
    return {template.id.name: template for template in compiled(output)}


def compiled(package: Path) -> Iterator[Any]:
    with tarfile.open(package) as archive:
        for member in archive:
            if member.name.endswith("_1.pb"):
                task = task_pb2.TaskSpec()
                task.ParseFromString(archive.extractfile(member).read())
                yield task.template


def mib(quantity: str) -> int:
    return int(quantity.removesuffix("Gi")) * 1024


def test_every_task_says_what_it_needs_how_long_it_may_take_and_whether_it_may_be_interrupted(templates):
    assert len(templates) > 12
    for name, template in templates.items():
        assert template.metadata.timeout.seconds > 0, f"{name} has no timeout"
        assert template.metadata.WhichOneof("interruptible_value"), f"{name} does not say whether it may be interrupted"
        assert template.metadata.retries.retries > 0 or not template.metadata.discoverable, name
        spec = MessageToDict(template.k8s_pod.pod_spec)
        (container,) = spec["containers"]
        asked = container["resources"]
        assert asked["requests"] == asked["limits"] and {"cpu", "memory", "ephemeral-storage"} <= set(asked["limits"]), name
        assert mib(asked["limits"]["memory"]) >= 2 * NEEDED_MIB, f"{name} would die of memory"
        assert container["envFrom"] == [{"secretRef": {"name": SECRET, "optional": True}}]
        assert {"BARD_HOME", "MLFLOW_DISABLE_TELEMETRY"} <= {item["name"] for item in container["env"]}
        assert spec["terminationGracePeriodSeconds"] == GRACE_S
        assert template.type == "ray" or spec["volumes"][0]["emptyDir"]["medium"] == "Memory", f"{name} has no shared memory"


def worker_of(compute: ComputeConfig) -> tuple[int, dict[str, str], Any]:
    (group,) = cluster(compute).worker_node_config
    spec = group.pod_template.pod_spec
    return group.replicas, spec.containers[0].resources.limits, spec


def test_sixteen_workers_ask_for_sixteen_gpus_and_the_lab_for_two_cpus():
    nodes, asked, spec = worker_of(ComputeConfig(num_workers=16, use_gpu=True, place={"selector": {"pool": "h100"}}))
    assert nodes * int(asked["nvidia.com/gpu"]) == 16 and asked["memory"] == "800Gi"
    assert spec.node_selector == {"pool": "h100"} and spec.tolerations[0].key == "nvidia.com/gpu"
    nodes, asked, spec = worker_of(ComputeConfig())
    assert (nodes, asked["cpu"]) == (1, "2") and "nvidia.com/gpu" not in asked and spec.tolerations is None
    nodes, asked, _ = worker_of(ComputeConfig(num_workers=1, use_gpu=True))
    assert (nodes, asked["nvidia.com/gpu"]) == (1, "1")
    (group,) = cluster(ComputeConfig(num_workers=(8, 32), use_gpu=True)).worker_node_config
    assert (group.min_replicas, group.max_replicas) == (1, 4)


def test_the_cluster_waits_for_a_checkpoint_and_is_probed_without_wget():
    config = cluster(ComputeConfig(stop_within_s=100))
    for group in (config.head_node_config, *config.worker_node_config):
        (container,) = group.pod_template.pod_spec.containers
        (wait,) = [item.value for item in container.env if item.name == "RAY_JOB_STOP_WAIT_TIME_S"]
        assert 100 < int(wait) < GRACE_S
        for probe in (container.liveness_probe, container.readiness_probe):
            assert probe._exec.command[:2] == ["python", "-c"]


def test_a_run_resizes_its_pods_and_queues_them():
    compute = ComputeConfig(pods={"evaluate": {"cpu": 16, "memory_gib": 64, "gpus": 1}}, place={"queue": "research"})
    judged = pod("evaluate", compute)
    assert (judged["limits"].gpu, judged["limits"].mem) == ("1", "64Gi")
    assert judged["pod_template"].labels == {QUEUE_LABEL: "research"}
    assert judged["pod_template"].pod_spec.tolerations[0].key == "nvidia.com/gpu"
    assert pod("consolidate", compute)["limits"].gpu is None
