"""The Ray cluster a training task asks for: KubeRay on a cluster, one shared local Ray on a laptop.

KubeRay submits the job to the head through the dashboard port from another pod, so it listens there; deploy/ keeps it inside.
Resources stand inside the pod templates: the plugin drops a template beside requests or limits of its own.
"""

from flytekit import PodTemplate
from flytekitplugins.ray import HeadNodeConfig, RayJobConfig, WorkerNodeConfig
from kubernetes.client import (
    V1Container,
    V1EmptyDirVolumeSource,
    V1EnvFromSource,
    V1PodSpec,
    V1ResourceRequirements,
    V1SecretEnvSource,
    V1Toleration,
    V1Volume,
    V1VolumeMount,
)

SECRET = "bard-training"  # keys become environment variables of every pod: HF_TOKEN, MLFLOW_TRACKING_TOKEN, ...; may be missing
GRACE_S = 120  # between SIGTERM and SIGKILL; longer than compute.stop_within_s


def _pod(container: str, resources: dict[str, str], shared_memory: str, gpu: bool) -> PodTemplate:
    """A pod of a node group: its container's resources, /dev/shm for NCCL and data, secrets as environment."""
    spec = V1PodSpec(
        containers=[
            V1Container(
                name=container,
                resources=V1ResourceRequirements(requests=resources, limits=resources),
                env_from=[V1EnvFromSource(secret_ref=V1SecretEnvSource(name=SECRET, optional=True))],
                volume_mounts=[V1VolumeMount(name="shm", mount_path="/dev/shm")],
            )
        ],
        volumes=[V1Volume(name="shm", empty_dir=V1EmptyDirVolumeSource(medium="Memory", size_limit=shared_memory))],
        tolerations=[V1Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")] if gpu else None,
        termination_grace_period_seconds=GRACE_S,
    )
    return PodTemplate(pod_spec=spec, primary_container_name=container)


TRAINING = RayJobConfig(
    head_node_config=HeadNodeConfig(
        ray_start_params={"dashboard-host": "0.0.0.0", "num-cpus": "0"},
        pod_template=_pod("ray-head", {"cpu": "4", "memory": "16Gi"}, "2Gi", gpu=False),
    ),
    worker_node_config=[
        WorkerNodeConfig(
            group_name="gpu",
            replicas=1,
            pod_template=_pod("ray-worker", {"cpu": "96", "memory": "800Gi", "nvidia.com/gpu": "8"}, "64Gi", gpu=True),
        )
    ],
    shutdown_after_job_finishes=True,
    ttl_seconds_after_finished=60,
)
