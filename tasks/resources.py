"""What every task's pod asks for: CPU, memory, disk, GPUs, time, and where it may stand.

Flyte gives a task that asks for nothing 200 MiB. So each task names its size here, and a run's ``compute.pods`` overrides it
where a task is started inside a dynamic workflow.
"""

from datetime import timedelta
from typing import Any

from flytekit import PodTemplate, Resources
from kubernetes.client import (
    V1Container,
    V1EmptyDirVolumeSource,
    V1EnvFromSource,
    V1PodSpec,
    V1SecretEnvSource,
    V1Toleration,
    V1Volume,
    V1VolumeMount,
)

from bard_core.config.sections.compute import ComputeConfig, PlaceConfig, PodConfig, PodStage

SECRET = "bard-training"  # its keys become environment variables of every pod (HF_TOKEN, ...); it may be missing
GRACE_S = 180  # between SIGTERM and SIGKILL; longer than compute.stop_within_s
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
ENVIRONMENT = {
    "BARD_HOME": "/home/bard/.bard",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

# Sizes for a model of a few billion parameters. A bare import of torch, flytekit and mlflow takes 1.1 GiB.
SIZES: dict[PodStage, PodConfig] = {
    "control": PodConfig(cpu=1, memory_gib=3, timeout_h=96),
    "prepare": PodConfig(cpu=8, memory_gib=16, disk_gib=100, shared_memory_gib=4),
    "resolve": PodConfig(cpu=4, memory_gib=32, disk_gib=100, timeout_h=4),
    "consolidate": PodConfig(cpu=4, memory_gib=32, disk_gib=200, timeout_h=4),
    "evaluate": PodConfig(cpu=8, memory_gib=32, disk_gib=100, shared_memory_gib=8),
    "report": PodConfig(cpu=2, memory_gib=4, timeout_h=1),
}


def pod(stage: PodStage, compute: ComputeConfig | None = None) -> dict[str, Any]:
    """Keyword arguments of ``@task``, ``@dynamic`` and ``with_overrides``: the pod of a stage, as ``compute`` wants it."""
    compute = compute or ComputeConfig()
    size = compute.pods.get(stage, SIZES[stage])
    resources = Resources(
        cpu=str(size.cpu),
        mem=f"{size.memory_gib}Gi",
        ephemeral_storage=f"{size.disk_gib}Gi",
        gpu=str(size.gpus) if size.gpus else None,
    )
    return {
        "requests": resources,
        "limits": resources,
        "timeout": timedelta(hours=size.timeout_h),
        "interruptible": False,
        "pod_template": primary(compute.place, size.shared_memory_gib, gpu=size.gpus > 0),
    }


def primary(place: PlaceConfig, shared_memory_gib: int, gpu: bool) -> PodTemplate:
    """A task's own pod: secrets as environment, time to stop, and its queue.

    ``shared_memory_gib``: 0 for no /dev/shm of its own.
    """
    more = {"env_from": [V1EnvFromSource(secret_ref=V1SecretEnvSource(name=SECRET, optional=True))]}
    template = with_shared_memory("primary", shared_memory_gib, place, gpu, **more)
    template.pod_spec.termination_grace_period_seconds = GRACE_S
    template.labels = {QUEUE_LABEL: place.queue} if place.queue else None
    return template


def with_shared_memory(container: str, shared_memory_gib: int, place: PlaceConfig, gpu: bool, **more: Any) -> PodTemplate:
    """A pod with /dev/shm for NCCL and data workers, and where it may stand.

    Args:
        gpu: it goes to the nodes that ``place`` describes. more: fields of the container.
    """
    sizes = [shared_memory_gib] if shared_memory_gib else []
    volumes = [V1Volume(name="shm", empty_dir=V1EmptyDirVolumeSource(medium="Memory", size_limit=f"{size}Gi")) for size in sizes]
    mounts = [V1VolumeMount(name="shm", mount_path="/dev/shm") for _ in sizes]
    tolerations = [V1Toleration(key=key, operator="Exists", effect="NoSchedule") for key in place.tolerations]
    spec = V1PodSpec(
        containers=[V1Container(name=container, volume_mounts=mounts or None, **more)],
        volumes=volumes or None,
        node_selector=(place.selector or None) if gpu else None,
        tolerations=tolerations if gpu else None,
    )
    return PodTemplate(pod_spec=spec, primary_container_name=container)
