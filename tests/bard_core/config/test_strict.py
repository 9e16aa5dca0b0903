"""A field that came later, at its default, leaves every digest what it was before the field was there."""

import pytest

from bard_core.config.sections.data import DataConfig, LabWorldConfig
from bard_core.config.sections.pbm import PBMMethod
from bard_core.config.sections.swd import SWDConfig
from bard_core.config.sections.train import TrainConfig
from bard_core.store import artifacts
from bard_core.store.refs import DatasetRef, ModelRef
from bard_core.training.spec import pbm_spec, swd_spec

DATASET = DatasetRef(uri="d", manifest_sha256="d" * 64, num_train=1, num_eval=1, epoch_samples=1)
MODEL = ModelRef(uri="m", manifest_sha256="e" * 64, stage="pbm", block_size=4, parent_sha256=None)
TRAIN = TrainConfig(steps=1)


def test_digests_are_those_of_before_the_later_fields() -> None:
    """Taken with the code as it was then: a home full of artifacts stays in use."""
    data = DataConfig(lab=LabWorldConfig())
    assert artifacts.digest(data).startswith("811f102167a9b56f")
    assert pbm_spec(PBMMethod(), (4, 8), TRAIN, DATASET, MODEL).origin["config"].startswith("9a12e475eb99e606")
    assert swd_spec(SWDConfig(train=TRAIN), "block", DATASET, MODEL, MODEL).origin["config"].startswith("b575fb4161f00d0d")


@pytest.mark.parametrize("changed", [{"held_out": "validation"}, {"train_images": 7}])
def test_what_is_not_at_its_default_counts(changed: dict[str, object]) -> None:
    assert artifacts.digest(LabWorldConfig(**changed)) != artifacts.digest(LabWorldConfig())
