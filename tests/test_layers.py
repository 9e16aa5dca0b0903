"""The house keeps its floors: who may import whom, read off the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [  # from the ground up; a room imports only from floors below its own
    {"diffusion", "config"},
    {"storage"},
    {"artifacts"},
    {"models", "tracking"},
    {"data"},
    {"decoding", "training"},
    {"evaluation"},
    {"report"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ONLY_IN = {"mlflow": "tracking.py", "lmms_eval": "lmms_plugin.py"}
# data.batches asks a model for its positions; evaluation starts the plugin.
SOURCES = sorted((ROOT / "bard_core").rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    return path.relative_to(ROOT / "bard_core").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_core_imports(path):
    mine = room_of(path)
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in ("flytekit", "flytekitplugins", "ray", "tasks", "workflows"), f"{path} imports {name}"
        if top in ONLY_IN and path.parent.name != "lab":
            assert path.name == ONLY_IN[top], f"{path} imports {name}; only {ONLY_IN[top]} may"
        parts = name.split(".")
        if top == "bard_core" and len(parts) > 1 and parts[1] in FLOOR and mine in FLOOR and parts[1] != mine:
            assert FLOOR[parts[1]] < FLOOR[mine], f"{path} ({mine}) imports {name}, which is not below it"
            assert mine != "diffusion", f"{path}: diffusion imports nothing of ours"


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.py")), ids=lambda p: p.name)
def test_workflows_only_compose(path):
    for name in imports(path):
        if name.startswith("bard_core"):
            assert name.startswith(("bard_core.config", "bard_core.artifacts")), f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").glob("*.py")), ids=lambda p: p.name)
def test_task_bodies_are_thin(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            length = (node.end_lineno or 0) - node.body[0].lineno
            assert length <= 40, f"{path.name}:{node.name} has {length} lines; move the work into bard_core"
