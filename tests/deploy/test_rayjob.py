"""The RayJob of a training task is valid for KubeRay 1.5.1, its pods for Kubernetes, and stays inside the cluster."""

import gzip
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from flytekit.configuration import Image, ImageConfig, SerializationSettings
from flytekit.tools.translator import get_serializable

from bard_core.config.sections.compute import ComputeConfig
from tasks.pbm import pbm
from tasks.ray_cluster import training
from tasks.resources import GRACE_S, QUEUE_LABEL, SECRET

from .rayjob import rayjob
from .test_manifests import DEPLOY

SIXTEEN = ComputeConfig(num_workers=16, use_gpu=True, place={"queue": "research", "spot": True})


def job_of(compute: ComputeConfig, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    asked = training(compute)
    monkeypatch.setattr(pbm, "_task_config", asked["task_config"])
    monkeypatch.setattr(pbm, "pod_template", asked["pod_template"])
    image = Image(name="train", fqn="example.org/bard", tag=None, digest="sha256:" + "0" * 64)
    images = ImageConfig(default_image=image, images=[image])
    settings = SerializationSettings(image_config=images, project="bard", domain="development", version="1")
    template = get_serializable(OrderedDict(), settings, pbm).template.to_flyte_idl()
    values = yaml.safe_load((DEPLOY / "flyte-values.yaml").read_text(encoding="utf-8"))
    return rayjob(template, values["configuration"]["inline"]["plugins"])


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    found = {"submitter": job["spec"]["submitterPodTemplate"], "head": cluster["headGroupSpec"]["template"]}
    return {**found, "worker": workers["template"]}


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """KubeRay's schema of a RayJob."""
    with gzip.open(Path(__file__).parent / "ray.io_rayjobs-1.5.1.yaml.gz", "rt") as file:
        definition = yaml.load(file, Loader=yaml.CSafeLoader)
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    found = strict(version["schema"]["openAPIV3Schema"])
    found["properties"]["metadata"] = {}  # every object's
    return found


def strict(node: Any) -> Any:
    """As the API server reads it: a key that is not named is refused; int-or-string stands for itself."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: strict(value) for key, value in node.items()}
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(node.get("properties"), dict) and "type" in node:
        return {"additionalProperties": False, **node}
    return node


def repeated(schema: Any, value: Any, path: str = "") -> Iterator[str]:
    """Items of lists that the API server takes as maps whose keys are there twice."""
    if isinstance(value, dict):
        for key, inner in value.items():
            below = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if isinstance(below, dict):
                yield from repeated(below, inner, f"{path}.{key}")
    if isinstance(value, list) and "items" in schema:
        if keys := schema.get("x-kubernetes-list-map-keys"):
            names = [tuple(item.get(key, schema["items"]["properties"][key].get("default")) for key in keys) for item in value]
            yield from (f"{path}: {name}" for name in names if names.count(name) > 1)
        for item in value:
            yield from repeated(schema["items"], item, path)


@pytest.mark.parametrize("compute", [ComputeConfig(), SIXTEEN], ids=["lab", "sixteen GPUs"])
def test_the_job_is_valid_and_its_pods_too(compute: ComputeConfig, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job, validator = job_of(compute, monkeypatch), jsonschema.Draft202012Validator(known)
    validator.validate(job)
    assert list(repeated(known, job)) == []
    for name, pod in pods(job).items():
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod["spec"]}
        kubernetes_validate.validate(whole, "1.32", strict=True)
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["servicetype"] = "NodePort"
    with pytest.raises(jsonschema.ValidationError, match="servicetype"):
        validator.validate(job)


def test_it_stays_inside_ends_with_its_job_and_is_queued_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(SIXTEEN, monkeypatch)
    assert job["metadata"]["labels"] == {QUEUE_LABEL: "research"}
    assert job["spec"]["shutdownAfterJobFinishes"] is True and job["spec"]["ttlSecondsAfterFinished"] == 60
    assert job["spec"]["entrypoint"].startswith("pyflyte-execute ")
    cluster = job["spec"]["rayClusterSpec"]
    assert (
        cluster["headGroupSpec"]["serviceType"] == "ClusterIP" and cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    )
    (workers,) = cluster["workerGroupSpecs"]
    gpus = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert workers["replicas"] * gpus == 16


def test_rays_pods_are_the_tasks_own_with_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pods(job_of(SIXTEEN, monkeypatch))
    for name, pod in found.items():
        (container,) = pod["spec"]["containers"]
        assert container["image"] == "example.org/bard@sha256:" + "0" * 64, name
        assert container["envFrom"] == [{"secretRef": {"name": SECRET, "optional": True}}]
        assert container["securityContext"]["runAsNonRoot"] is True and pod["spec"]["serviceAccountName"] == "default"
        assert pod["spec"]["terminationGracePeriodSeconds"] == GRACE_S > SIXTEEN.stop_within_s
        shared = [volume["emptyDir"]["sizeLimit"] for volume in pod["spec"].get("volumes", [])]
        assert shared == {"submitter": [], "head": ["2Gi"], "worker": ["64Gi"]}[name]
    assert "tolerations" in found["worker"]["spec"] and "tolerations" not in found["head"]["spec"]
