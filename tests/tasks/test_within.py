"""A run's sizes reach the pods of its tasks on Flyte 1; on Flyte 2 a task is called as it is declared."""

import sys
from types import ModuleType

import pytest
from flytekit import workflow

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.data import DataConfig
from bard_core.data.inputs import RawInputs
from tasks.prepare import raw_inputs
from tasks.resources import QUEUE_LABEL, pod
from tasks.within import declared, within

COMPUTE = ComputeConfig(pods={"prepare": {"cpu": 3, "memory_gib": 5, "gpus": 1}}, place={"queue": "research"})


@workflow
def looking(data: DataConfig) -> RawInputs:
    return within(pod("prepare", COMPUTE), raw_inputs)(data=data)


def test_a_call_is_told_what_its_pod_should_be() -> None:
    (node,) = looking.nodes
    asked = {str(entry.name): entry.value for entry in node._resources.limits}
    assert sorted(asked.values()) == ["1", "10Gi", "3", "5Gi"] and node._resources.limits == node._resources.requests
    assert node._pod_template.labels == {QUEUE_LABEL: "research"}


def test_on_flyte_2_a_call_is_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    how = pod("prepare", COMPUTE)
    assert declared(how) is how
    monkeypatch.setitem(sys.modules, "flyte_migrate", ModuleType("flyte_migrate"))
    assert within(how, raw_inputs) is raw_inputs
    assert "requests" not in declared(how) and declared(how)["limits"] is how["limits"]
