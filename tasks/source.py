"""source: the autoregressive model that everything starts from."""

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.source import SourceConfig
from bard_core.config.sections.storage import TrackingConfig
from bard_core.training.spec import source_spec
from tasks.launch import train_on_ray
from tasks.ray_cluster import ray_task
from tasks.settings import Checkpoint, Dataset


@ray_task("train", "source")
def train_source(
    source: SourceConfig, dataset: Dataset, compute: ComputeConfig, tracking: TrackingConfig, parent_run: str
) -> Checkpoint:
    """Train the lab's source model from scratch on the AR objective."""
    return train_on_ray(source_spec(source, dataset), compute, tracking, parent_run)
