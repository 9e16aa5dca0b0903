"""source: the autoregressive model that everything starts from."""

from bard_core.config.sections import ComputeConfig, SourceConfig, TrackingConfig
from bard_core.training.spec import StageSpec
from tasks.launch import train_on_ray
from tasks.ray_cluster import ray_task
from tasks.settings import Checkpoint, Dataset


@ray_task("train", "source")
def train_source(
    source: SourceConfig, dataset: Dataset, compute: ComputeConfig, tracking: TrackingConfig, parent_run: str
) -> Checkpoint:
    """Train the lab's source model from scratch on the AR objective."""
    if source.train is None:
        raise ValueError("train_source is for model 'lab'; a pretrained model goes through resolve_source")
    spec = StageSpec(stage="source", dataset=dataset, train=source.train, lab_model=source.lab_model, clean_attention="causal")
    return train_on_ray(spec, compute, tracking, parent_run)
