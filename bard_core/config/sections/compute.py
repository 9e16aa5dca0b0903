"""Where stages run: workers, nodes, pods, and where checkpoints go."""

from typing import Literal

from pydantic import Field, model_validator

from bard_core.config.sections.storage import Place
from bard_core.config.strict import StrictModel


class CheckpointConfig(StrictModel):
    """Where training keeps its checkpoints, how many, and how much of them it believes."""

    root_uri: Place = Field("", description="Folder that every worker reaches, or s3:// prefix; empty: $BARD_HOME/checkpoints")
    keep_last: int = Field(2, ge=1, description="Newest checkpoints of a run to keep")
    keep_best: int = Field(
        0, ge=0, description="Checkpoints to keep besides: those with the lowest loss, held-out where train.validate_every looks"
    )
    verify_sha256: bool = Field(True, description="Hash every shard before resuming; False: sizes, and .metadata's hash")


PodStage = Literal["control", "prepare", "resolve", "consolidate", "evaluate", "report"]


class PodConfig(StrictModel):
    """What the pod of one task asks for, and gets no more of."""

    cpu: int = Field(2, ge=1)
    memory_gib: int = Field(4, ge=1)
    disk_gib: int = Field(10, ge=1, description="Ephemeral storage: the container's own writable files")
    shared_memory_gib: int = Field(1, ge=1, description="/dev/shm, part of the memory")
    gpus: int = Field(0, ge=0)
    timeout_h: float = Field(24.0, gt=0.0, description="The task is ended after this long")


class NodeConfig(StrictModel):
    """One training node: its pod takes the whole of it. Without GPUs, one pod takes what all workers need."""

    gpus: int = Field(8, ge=1, description="GPUs a node, one worker each")
    cpu: int = Field(96, ge=1)
    memory_gib: int = Field(800, ge=1)
    disk_gib: int = Field(500, ge=1)
    shared_memory_gib: int = Field(64, ge=1)


class PlaceConfig(StrictModel):
    """Where the pods may stand."""

    selector: dict[str, str] = Field({}, description="Labels that a training or GPU node must have")
    tolerations: tuple[str, ...] = Field(("nvidia.com/gpu",), description="Taints, by key, that GPU pods tolerate")
    spot: bool = Field(False, description="Training may run on nodes that are taken away; it goes on from a checkpoint")
    queue: str = Field("", description="Kueue's local queue; empty: none")


class ParallelConfig(StrictModel):
    """How the workers of a stage divide and run its model. It changes speed and memory; results only by rounding."""

    shard_over: Literal["all", "node"] = Field(
        "all", description="Whom the model is sharded over: all workers, or those of a node, which then replicate one another"
    )
    compile_layers: bool = Field(
        False, description="Decoder layers through torch.compile: faster steps on a GPU, minutes until the first one is done"
    )


class ComputeConfig(StrictModel):
    """Where stages run. Not part of any cache key: the same step on other hardware is the same step."""

    num_workers: int | tuple[int, int] = Field(2, description="Ray Train workers; [fewest, most] follows the cluster's size")
    use_gpu: bool = False
    cpus_per_worker: int = Field(1, ge=1)
    prepare_tasks: int = Field(1, ge=1, description="Tasks that share the raw shards of prepare; each uses all its cores")
    judge_tasks: int = Field(1, ge=1, description="Tasks that share each benchmark's samples; each uses all its GPUs")
    data_workers: int | None = Field(
        None, ge=0, description="Processes a worker that load data ahead; None: all its CPUs but one, so none on a laptop"
    )
    data_cache_gib: float = Field(100.0, gt=0.0, description="Disk on each node for data fetched from elsewhere")
    max_failures: int = Field(2, ge=0, description="Worker failures a stage survives; nodes taken away are not counted")
    stop_within_s: float = Field(90.0, gt=0.0, description="After SIGTERM, the longest wait for a last checkpoint")
    checkpoints: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()
    node: NodeConfig = Field(NodeConfig(), description="A training node of the cluster")
    pods: dict[PodStage, PodConfig] = Field({}, description="What the pods of the other stages ask for, in place of the defaults")
    place: PlaceConfig = PlaceConfig()

    @property
    def most_workers(self) -> int:
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def fewest_workers(self) -> int:
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def loaders(self) -> int:
        """``data_workers`` with its default."""
        return self.cpus_per_worker - 1 if self.data_workers is None else self.data_workers

    @model_validator(mode="after")
    def _workers(self) -> "ComputeConfig":
        fewest, most = self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)
        if not 1 <= fewest <= most:
            raise ValueError(f"compute.num_workers is a count or [fewest, most] with 1 <= fewest <= most, got {self.num_workers}")
        return self
