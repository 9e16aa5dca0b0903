"""The RayJob that Flyte's Ray plugin (flyteplugins v1.16.8) makes of a training task, as far as this project uses it.

Each of Ray's pods is a copy of the task's own, renamed, without its arguments, with the template of its node group laid over it:
values of the template win, lists are joined.
"""

import copy
from typing import Any

from google.protobuf.json_format import MessageToDict

PORTS = [{"name": name, "containerPort": port} for name, port in (("redis", 6379), ("head", 10001), ("dashboard", 8265))]
ADDRESS = {"name": "MY_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def laid_over(base: Any, overlay: Any) -> Any:
    """As Go's mergo does WithOverride and WithAppendSlice."""
    if isinstance(base, dict) and isinstance(overlay, dict):
        return {key: laid_over(base.get(key), overlay.get(key)) for key in {**base, **overlay}}
    if isinstance(base, list) and isinstance(overlay, list):
        return [*base, *overlay]
    return base if overlay in (None, "", 0, False) else overlay


def pod_of(task: dict[str, Any], name: str, group: dict[str, Any]) -> dict[str, Any]:
    """The task's pod as one of a node group, in the form of a pod template."""
    base, overlay = copy.deepcopy(task), group["k8sPod"].get("podSpec", {})
    (container,) = base["containers"]
    container |= {"name": name, "args": [], "env": [*container["env"], ADDRESS], "ports": PORTS}
    if name == "ray-worker":
        container["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/sh", "-c", "ray stop"]}}}
    (same,) = [other for other in overlay["containers"] if other["name"] == name]
    merged = laid_over({**base, "containers": None}, {**overlay, "containers": None})
    return {**merged, "containers": [laid_over(container, same)]}


def rayjob(template: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Of a compiled task, under Flyte's ``plugins`` settings."""
    ray, k8s = settings["ray"], settings["k8s"]
    task = MessageToDict(template.k8s_pod.pod_spec)
    (container,) = task["containers"]
    container["env"] += [{"name": name, "value": value} for item in k8s["default-env-vars"] for name, value in item.items()]
    container.setdefault("securityContext", k8s["default-security-context"])
    task |= {"restartPolicy": "Never", "serviceAccountName": "default"}
    metadata = {"labels": dict(template.k8s_pod.metadata.labels), "annotations": {}}
    asked = MessageToDict(template.custom)
    head, workers = asked["rayCluster"]["headGroupSpec"], asked["rayCluster"]["workerGroupSpec"]
    parameters = {"include-dashboard": str(ray["includeDashboard"]).lower(), "dashboard-host": ray["dashboardHost"]}
    everywhere = {"node-ip-address": "$MY_POD_IP"} | ({} if ray["enableUsageStats"] else {"disable-usage-stats": "true"})

    def pods(name: str, group: dict[str, Any]) -> dict[str, Any]:
        labels = metadata["labels"] | group["k8sPod"].get("metadata", {}).get("labels", {})
        return {"metadata": {**metadata, "labels": labels}, "spec": pod_of(task, name, group)}

    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {**metadata, "name": "f1-n2-0", "namespace": "bard-development"},
        "spec": {
            "entrypoint": " ".join(container["args"]),
            "shutdownAfterJobFinishes": asked.get("shutdownAfterJobFinishes") or ray["shutdownAfterJobFinishes"],
            "ttlSecondsAfterFinished": int(asked.get("ttlSecondsAfterFinished") or ray["ttlSecondsAfterFinished"]),
            "submitterPodTemplate": {"metadata": metadata, "spec": task},
            "rayClusterSpec": {
                "enableInTreeAutoscaling": asked["rayCluster"].get("enableAutoscaling", False),
                "headGroupSpec": {
                    "serviceType": ray["serviceType"],
                    "enableIngress": False,
                    "rayStartParams": {**everywhere, **parameters, **head["rayStartParams"]},
                    "template": pods("ray-head", head),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": group["groupName"],
                        **{key: int(group[key]) for key in ("replicas", "minReplicas", "maxReplicas")},
                        "rayStartParams": {**everywhere, **group.get("rayStartParams", {})},
                        "template": pods("ray-worker", group),
                    }
                    for group in workers
                ],
            },
        },
    }
