"""A small prepared lab dataset and untrained models of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bard_core import artifacts
from bard_core.artifacts import DatasetRef, ModelRef
from bard_core.config import DataConfig, LabModelConfig, LabWorldConfig
from bard_core.data.prepare import prepare

TINY = LabModelConfig(
    hidden_size=32, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate_size=32, vision_hidden_size=16, vision_heads=1
)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetRef:
    world = LabWorldConfig(train_images=8, eval_images=8, cell_px=32)
    return prepare(DataConfig(lab=world), str(tmp_path_factory.mktemp("lab") / "dataset"))


@pytest.fixture(scope="session")
def make_model(dataset: DatasetRef) -> Callable[..., ModelRef]:
    """``make_model(folder, block_size, seed)``: a random lab model, committed; block size 1 is the source."""
    from transformers import AutoProcessor

    from bard_core.models import BardSettings, record_settings
    from bard_core.models.lab import build_lab_model
    from bard_core.models.vlm import MASK_TOKEN

    processor: Any = AutoProcessor.from_pretrained(Path(dataset.uri) / "processor")

    def make(folder: Path, block_size: int, seed: int = 0) -> ModelRef:
        model = build_lab_model(TINY, processor, 128, seed)
        record_settings(model, BardSettings(block_size, processor.tokenizer.convert_tokens_to_ids(MASK_TOKEN)))
        staging = folder.with_name(f"{folder.name}.staging")
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        manifest = artifacts.commit_directory(staging, str(folder), kind="model")
        return ModelRef(
            uri=str(folder),
            manifest_sha256=manifest.digest,
            stage="source" if block_size == 1 else "pbm",
            block_size=block_size,
            parent_sha256=None,
        )

    return make
