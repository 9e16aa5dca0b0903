"""swd: Stage-Wise Distillation of a large-block student from the frozen small-block teacher."""

from typing import cast

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.storage import TrackingConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.diffusion.names import TrainedAttention
from bard_core.training.spec import swd_spec
from tasks.launch import train_on_ray
from tasks.ray_cluster import ray_task
from tasks.settings import Checkpoint, Dataset, Model


@ray_task("train", "swd")
def swd(
    config: SWDConfig,
    clean_attention: str,
    dataset: Dataset,
    student: Model,
    teacher: Model,
    compute: ComputeConfig,
    tracking: TrackingConfig,
    parent_run: str,
) -> Checkpoint:
    """Distil ``student`` at its own block size; it was trained on the same dataset as its teacher."""
    attention = cast(TrainedAttention, clean_attention)  # the spec checks it
    return train_on_ray(swd_spec(config, attention, dataset, student, teacher), compute, tracking, parent_run)
