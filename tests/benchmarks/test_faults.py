"""The table of faults: brought together from its parts, and what the docs say is what was run."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "benchmarks" / "results" / "faults.json"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_faults")


def test_parts_are_brought_together_and_nothing_is_hidden(module: Any) -> None:
    kill = {"fault": "kill -9", "times": 3, "outcome": "as undisturbed"}
    parts = {
        "tasks": {"minutes": 2.0, "failed": ["tests/tasks/test_x.py::test_y"], "repaired": [], "faults": [kill]},
        "library": {"minutes": 1.0, "failed": [], "repaired": ["z"], "faults": [{**kill, "fault": "a flipped bit"}]},
    }
    body = module.table(parts)
    assert (body["injections"], body["kinds"], body["lost, silent, hung or mended by hand"]) == (6, 2, 1)
    assert body["failed"] == ["tests/tasks/test_x.py::test_y"] and body["never run"] == ["pipelines"]
    assert [row["fault"] for row in body["faults"]] == ["a flipped bit", "kill -9"]
    text = module.page({"machine": {"cores": 2}, **body})
    assert "not survived: 1." in text and "parts not run: pipelines." in text and "mended and ran again: 1;" in text
    assert "| kill -9 | 3 | as undisturbed |" in text and "took 3 minutes on 2 cores" in text


def test_the_page_of_the_docs_is_the_table(module: Any) -> None:
    body = json.loads(TABLE.read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8") == module.page(body), "run: make test-faults"
    assert body["injections"] >= 500 and body["kinds"] >= 30
    assert body["lost, silent, hung or mended by hand"] == 0
    assert body["never run"] == []


def test_what_ran_again_stands_beside_what_had_not_failed(tmp_path: Path) -> None:
    from tests.conftest import Faults

    first, again = Faults(), Faults()
    first.survived("kill -9", "as undisturbed", 2)
    first.failed.append("test_y")
    first.write(tmp_path / "part.json", again=False)
    again.survived("a flipped bit", "told")
    again.write(tmp_path / "part.json", again=True)
    body = json.loads((tmp_path / "part.json").read_text())
    assert (body["failed"], body["repaired"], [row["times"] for row in body["faults"]]) == ([], ["test_y"], [1, 2])
