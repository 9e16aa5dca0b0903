"""A failed pipeline leaves a report that names the error and what is finished, here and in MLflow, and its run as failed."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from flyteidl.core import literals_pb2, types_pb2
from flytekit import FlyteContextManager
from flytekit.core.type_engine import TypeEngine
from flytekit.models.literals import Literal
from flytekit.types.error import FlyteError

from bard_core.store import storage
from bard_core.tracking import runs
from tasks.failure import report_failure
from workflows.pipeline import bard_pipeline

ROOT = Path(__file__).resolve().parents[2]


def sections() -> dict[str, Any]:
    """The workflow's inputs of configs/lab.yaml, in their types, with defaults."""
    given = yaml.safe_load((ROOT / "configs" / "lab.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, (kind, default) in bard_pipeline.python_interface.inputs_with_defaults.items():
        found[name] = kind.model_validate(given[name]) if isinstance(given.get(name), dict) else given.get(name, default)
    return found


def test_the_report_names_the_error_and_what_is_finished(bard_home: Path, make_model: Any) -> None:
    make_model(bard_home / "artifacts" / "models" / "source-0123456789abcdef", 1)
    inputs = sections()
    report_failure(**inputs, err=FlyteError(failed_node_id="n2", message="OutOfMemory: the second stage"))
    page = (bard_home / "artifacts" / "failures" / f"{inputs['name']}.md").read_text()
    assert "OutOfMemory: the second stage" in page and "- models/source-0123456789abcdef" in page
    assert "Start the same run again" in page
    client, experiment = runs.client_of(inputs["tracking"])
    found = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert found[inputs["name"]].info.status == "FAILED"
    (kept,) = client.list_artifacts(found["failure"].info.run_id)
    assert kept.path == "failure.md"


def test_flyte_calls_it_when_the_pipeline_fails() -> None:
    assert bard_pipeline.on_failure is report_failure


def test_the_error_that_flyte_sends_is_read() -> None:
    """As a pod gets it: from the wire, where the workflow's inputs say nothing of it."""
    sent = literals_pb2.Literal(scalar=literals_pb2.Scalar(error=types_pb2.Error(failed_node_id="n2", message="OutOfMemory")))
    read = Literal.from_flyte_idl(literals_pb2.Literal.FromString(sent.SerializeToString()))
    wanted = report_failure.python_interface.inputs["err"]
    got = TypeEngine.to_python_value(FlyteContextManager.current_context(), read, wanted)
    assert got == FlyteError(failed_node_id="n2", message="OutOfMemory")


def test_a_page_is_written_again_by_the_next_failure(bard_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = sections()
    for message in ("first", "second"):
        report_failure(**inputs, err=FlyteError(failed_node_id="n2", message=message))
    uri = storage.join(storage.root_uri(inputs["storage_config"]), "artifacts", "failures", f"{inputs['name']}.md")
    assert b"second" in storage.read_bytes(uri) and b"first" not in storage.read_bytes(uri)
