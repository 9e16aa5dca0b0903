"""swd: Stage-Wise Distillation of a large-block student from the frozen small-block teacher."""

from bard_core.config.sections import ComputeConfig, SWDConfig, TrackingConfig, ar_share
from bard_core.diffusion.names import CleanAttention
from bard_core.training.spec import StageSpec
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
    attention: CleanAttention = "causal" if clean_attention == "causal" else "block"
    spec = StageSpec(
        stage="swd",
        dataset=dataset,
        train=config.train,
        parent=student,
        block_size=student.block_size,
        clean_attention=attention,
        noise=config.noise,
        ar_weight=ar_share(config.ar_weight, attention),
        reduction=config.reduction,
        tail_weight=config.tail_weight,
        swd=config,
        teacher=teacher,
    )
    return train_on_ray(spec, compute, tracking, parent_run)
