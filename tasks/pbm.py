"""pbm: one block size of Progressive Block Merging, from the model of the stage before."""

from bard_core.config.sections import ComputeConfig, PBMMethod, TrackingConfig, TrainConfig
from bard_core.training.spec import StageSpec
from tasks.launch import train_on_ray
from tasks.ray_cluster import ray_task
from tasks.settings import Checkpoint, Dataset, Model


@ray_task("train", "pbm")
def pbm(
    method: PBMMethod,
    block_size: int,
    train: TrainConfig,
    dataset: Dataset,
    parent: Model,
    compute: ComputeConfig,
    tracking: TrackingConfig,
    parent_run: str,
) -> Checkpoint:
    """Train ``parent`` to denoise blocks of ``block_size``."""
    spec = StageSpec(
        stage="pbm",
        dataset=dataset,
        train=train,
        parent=parent,
        block_size=block_size,
        clean_attention=method.clean_attention,
        noise=method.noise,
        ar_weight=method.ar_share,
        reduction=method.reduction,
        tail_weight=method.tail_weight,
    )
    return train_on_ray(spec, compute, tracking, parent_run)
