"""A run of no stage, to write checkpoints into."""

import pytest

from bard_core.training.checkpoints.writer import Run

ORIGIN = {"config": "c" * 64, "dataset": "d" * 64, "parent": "none", "teacher": "none"}


@pytest.fixture
def run(tmp_path, bard_home):
    return Run(str(tmp_path / "run"), ORIGIN)
