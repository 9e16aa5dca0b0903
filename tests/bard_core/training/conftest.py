"""One tiny dataset for all training tests."""

import pytest

from bard_core.config import DataConfig, LabModelConfig, LabWorldConfig, OptimizerConfig, TrainConfig
from bard_core.data.prepare import prepare

TINY_MODEL = LabModelConfig(
    hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate_size=48, vision_hidden_size=16, vision_heads=2
)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    world = LabWorldConfig(rows=2, columns=2, alphabet=4, digits=3, min_cells=2, max_cells=3, train_images=24, eval_images=6)
    return prepare(DataConfig(lab=world, max_tokens=512), str(tmp_path_factory.mktemp("dataset") / "lab"))


def tiny_train(steps=6, **kwargs):
    frozen = kwargs.pop("frozen", True)
    rate = 0.0 if frozen else 1e-3
    optimizer = OptimizerConfig(lr=3e-3, vision_lr=rate, merger_lr=rate, warmup_steps=2)
    values = {"batch_size": 4, "max_tokens_per_row": 256, "precision": "float32", "checkpoint_every": 3, "log_every": 1}
    return TrainConfig(steps=steps, optimizer=optimizer, **{**values, **kwargs})
