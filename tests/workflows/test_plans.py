"""Launch plans hold the site's places, and none that a file of configs/ leaves to be named."""

import pytest

from workflows.pipeline import bard_pipeline
from workflows.plans import inputs_of
from workflows.reevaluate import reevaluate

ROOT = "gs://ours/bard"


def said(inputs):
    return "".join(value if isinstance(value, str) else value.model_dump_json() for value in inputs.values())


@pytest.mark.parametrize(
    "workflow, file", [(bard_pipeline, "bard_4b.yaml"), (bard_pipeline, "lab.yaml"), (reevaluate, "reevaluate/paper.yaml")]
)
def test_a_plan_has_the_sites_places(workflow, file, monkeypatch):
    monkeypatch.setenv("BARD_ROOT_URI", ROOT)
    inputs = inputs_of(workflow, file)
    assert inputs["storage_config"].root_uri == ROOT
    assert "BUCKET" not in said(inputs)
    if file == "bard_4b.yaml":
        checkpoints = inputs["compute"].checkpoints
        assert checkpoints.root_uri == f"{ROOT}/checkpoints" and checkpoints.keep_last == 3
        assert inputs["swd"].data.sources[0].root == f"{ROOT}/raw"
    monkeypatch.delenv("BARD_ROOT_URI")
    assert ROOT not in said(inputs_of(workflow, file))
