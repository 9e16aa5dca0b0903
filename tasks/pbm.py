"""pbm: one stage of Progressive Block Merging, from the model of the stage before."""

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.pbm import PBMMethod
from bard_core.config.sections.storage import TrackingConfig
from bard_core.config.sections.train import TrainConfig
from bard_core.training.spec import pbm_spec
from tasks.launch import train_on_ray
from tasks.ray_cluster import ray_task
from tasks.settings import Checkpoint, Dataset, Model


@ray_task("train", "pbm")
def pbm(
    method: PBMMethod,
    block_sizes: list[int],
    train: TrainConfig,
    dataset: Dataset,
    parent: Model,
    draw: str,
    compute: ComputeConfig,
    tracking: TrackingConfig,
    parent_run: str,
) -> Checkpoint:
    """Train ``parent`` to denoise blocks of these sizes."""
    return train_on_ray(pbm_spec(method, block_sizes, train, dataset, parent, draw), compute, tracking, parent_run)
