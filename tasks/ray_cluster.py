"""The Ray cluster a training task asks for: KubeRay on a cluster, one shared local Ray on a laptop.

KubeRay submits the job to the head through the dashboard port from another pod, so it listens there; deploy/ keeps it inside.
Resources stand inside the pod templates: the plugin drops a template beside requests or limits of its own. Flyte lays each
template over a copy of the task's own pod and joins lists, so what stands there must not stand here again: Ray's pods have the
task's image, secrets and grace, and only they have a /dev/shm.
"""

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from flytekit import PodTemplate
from flytekitplugins.ray import HeadNodeConfig, RayJobConfig, WorkerNodeConfig
from kubernetes.client import V1EnvVar, V1ExecAction, V1Probe, V1ResourceRequirements

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.versions import Code
from tasks.resources import primary, with_shared_memory
from tasks.settings import stage_task

WAIT_MARGIN_S = 30  # Ray kills a stopped job's driver this long after it should have stopped by itself
TIMEOUT = timedelta(days=14)

# Ray's own health checks, asked with what every image has. KubeRay's ask with wget.
_CHECK = "import sys, urllib.request; sys.exit(b'success' not in urllib.request.urlopen(sys.argv[1], timeout=5).read())"
_RAYLET = "http://localhost:52365/api/local_raylet_healthz"


def _probes(url: str) -> dict[str, V1Probe]:
    ask = V1ExecAction(command=["python", "-c", _CHECK, url])
    often = {"_exec": ask, "period_seconds": 15, "timeout_seconds": 10}
    return {
        "readiness_probe": V1Probe(**often, initial_delay_seconds=10, failure_threshold=20),
        "liveness_probe": V1Probe(**often, initial_delay_seconds=60, failure_threshold=40),
    }


def _node(container: str, asked: dict[str, str], shared_memory_gib: int, compute: ComputeConfig, gpu: bool) -> PodTemplate:
    more = {"resources": V1ResourceRequirements(requests=asked, limits=asked), "env": _environment(compute), **_probes(_RAYLET)}
    return with_shared_memory(container, shared_memory_gib, compute.place, gpu, **more)


def _environment(compute: ComputeConfig) -> list[V1EnvVar]:
    wait = math.ceil(compute.stop_within_s + WAIT_MARGIN_S)
    return [V1EnvVar(name="RAY_JOB_STOP_WAIT_TIME_S", value=str(wait))]


def cluster(compute: ComputeConfig) -> RayJobConfig:
    """As many nodes as ``compute``'s workers fill: whole GPU nodes, or one pod with the CPUs that all workers need."""
    node, gpu = compute.node, compute.use_gpu
    most, fewest = compute.most_workers, compute.fewest_workers
    if gpu:
        a_node = min(node.gpus, most)
        asked = {"cpu": str(node.cpu), "memory": f"{node.memory_gib}Gi", "ephemeral-storage": f"{node.disk_gib}Gi"}
        asked["nvidia.com/gpu"] = str(a_node)
        nodes = [math.ceil(count / a_node) for count in (fewest, most)]
        shared_memory = node.shared_memory_gib
    else:
        cpus = most * compute.cpus_per_worker
        asked = {"cpu": str(cpus), "memory": f"{4 * most}Gi", "ephemeral-storage": f"{10 + 10 * most}Gi"}
        nodes, shared_memory = [1, 1], most
    head = {"cpu": "4", "memory": "16Gi", "ephemeral-storage": "20Gi"} if gpu else {"cpu": "1", "memory": "4Gi"}
    head |= {"ephemeral-storage": "20Gi"}
    return RayJobConfig(
        head_node_config=HeadNodeConfig(
            ray_start_params={"dashboard-host": "0.0.0.0", "num-cpus": "0"},
            pod_template=_node("ray-head", head, 2, compute, gpu=False),
        ),
        worker_node_config=[
            WorkerNodeConfig(
                group_name="workers",
                replicas=nodes[1],
                min_replicas=nodes[0],
                max_replicas=nodes[1],
                pod_template=_node("ray-worker", asked, shared_memory, compute, gpu),
            )
        ],
        shutdown_after_job_finishes=True,
        ttl_seconds_after_finished=60,
    )


def training(compute: ComputeConfig | None = None) -> dict[str, Any]:
    """Keyword arguments of a training task, or of ``with_overrides``: Ray cluster, own pod, whether it may be interrupted.

    The queue label of its own pod becomes the Ray job's.
    """
    compute = compute or ComputeConfig()
    own = primary(compute.place, 0, gpu=False)
    return {"task_config": cluster(compute), "pod_template": own, "interruptible": compute.place.spot}


def ray_task(stage: str, code: Code) -> Callable[[Callable[..., Any]], Any]:
    """A training task: its own pod submits a job to a Ray cluster, whose size a run's ``compute`` sets."""
    return stage_task(stage, "control", code=code, **training())
