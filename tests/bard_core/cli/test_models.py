"""What people call a model leads to one that is whole."""

import os
from pathlib import Path

from bard_core.cli.models import find_model


def test_a_model_that_was_set_aside_as_damaged_is_none(bard_home: Path) -> None:
    models = bard_home / "artifacts" / "models"
    for age, name in enumerate(("pbm-b4-00ff", "pbm-b4-00ff.damaged", "pbm-b4-00ff.damaged-2")):
        (models / name).mkdir(parents=True)
        (models / name / "manifest.json").touch()
        os.utime(models / name, (1000 + age, 1000 + age))
    assert find_model("pbm-b4") == str(models / "pbm-b4-00ff")
