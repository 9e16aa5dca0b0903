"""Launch plans: the workflows with their inputs filled in, so that a run is one click, one command or one clock tick.

    bard-lab       the whole pipeline on generated images: a smoke test of a cluster, in minutes
    bard-4b        the paper's conversion of the 4B model
    reevaluate     judge what lacks a score, by hand
    nightly        the same, every night

Read when the project is packaged: ``BARD_ROOT_URI`` is where artifacts go (s3:// or gs://), with raw data below its ``raw``;
``BARD_NOTIFY`` the addresses, separated by commas, that hear of a failed night.
"""

import os
from pathlib import Path
from typing import Any

import yaml
from flytekit import CronSchedule, Email, LaunchPlan
from flytekit.core.workflow import WorkflowBase
from flytekit.models.core.execution import WorkflowExecutionPhase
from pydantic import BaseModel

from workflows.pipeline import bard_pipeline
from workflows.reevaluate import reevaluate

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FAILED = [WorkflowExecutionPhase.FAILED, WorkflowExecutionPhase.TIMED_OUT, WorkflowExecutionPhase.ABORTED]


def inputs_of(workflow: WorkflowBase, file: str) -> dict[str, Any]:
    """The sections of a file of configs/, checked, with the site's storage root, its shared checkpoints and its raw data."""
    sections = yaml.safe_load((CONFIGS / file).read_text(encoding="utf-8"))
    types = workflow.python_interface.inputs
    if root := os.environ.get("BARD_ROOT_URI"):
        sections["storage_config"] = {"root_uri": root}
        if "compute" in sections:
            sections["compute"].setdefault("checkpoints", {})["root_uri"] = f"{root}/checkpoints"
    found = {name: types[name].model_validate(value) if isinstance(value, dict) else value for name, value in sections.items()}
    return {name: _at(root, value) if root and isinstance(value, BaseModel) else value for name, value in found.items()}


def _at(root: str, section: BaseModel) -> BaseModel:
    """The section with ``root`` in place of the bucket that configs/ leave to be named."""
    return type(section).model_validate_json(section.model_dump_json(exclude_unset=True).replace("s3://BUCKET", root))


def _told() -> list[Any]:
    people = [address.strip() for address in os.environ.get("BARD_NOTIFY", "").split(",") if address.strip()]
    return [Email(phases=FAILED, recipients_email=people)] if people else []


LAB = LaunchPlan.get_or_create(bard_pipeline, name="bard-lab", default_inputs=inputs_of(bard_pipeline, "lab.yaml"))
FOUR_B = LaunchPlan.get_or_create(
    bard_pipeline, name="bard-4b", default_inputs=inputs_of(bard_pipeline, "bard_4b.yaml"), notifications=_told()
)
BY_HAND = LaunchPlan.get_or_create(
    reevaluate, name="reevaluate", default_inputs=inputs_of(reevaluate, "reevaluate/paper.yaml"), notifications=_told()
)
NIGHTLY = LaunchPlan.get_or_create(
    reevaluate,
    name="nightly",
    fixed_inputs=inputs_of(reevaluate, "reevaluate/paper.yaml"),
    schedule=CronSchedule(schedule="17 3 * * *"),
    notifications=_told(),
)
