"""The Ray cluster a training task asks for: KubeRay on a cluster, one shared local Ray on a laptop.

KubeRay submits the job to the head through the dashboard port from another pod, so it listens there; deploy/ keeps it inside.
"""

from flytekit import Resources
from flytekitplugins.ray import HeadNodeConfig, RayJobConfig, WorkerNodeConfig

GPU_NODE = Resources(cpu="96", mem="800Gi", gpu="8")

TRAINING = RayJobConfig(
    head_node_config=HeadNodeConfig(
        ray_start_params={"dashboard-host": "0.0.0.0", "num-cpus": "0"},
        requests=Resources(cpu="4", mem="16Gi"),
        limits=Resources(cpu="4", mem="16Gi"),
    ),
    worker_node_config=[WorkerNodeConfig(group_name="gpu", replicas=1, requests=GPU_NODE, limits=GPU_NODE)],
    shutdown_after_job_finishes=True,
    ttl_seconds_after_finished=60,
)
