"""The house rules, read off the import statements: who may import whom, and where each framework may be named.

Imports inside functions and under TYPE_CHECKING count too.
"""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the ground up: a room imports only from floors below its own. models stand under data, whose positions they compute.
FLOORS = (
    {"diffusion", "known_warnings", "processes", "progress"},
    {"config"},
    {"store", "lab"},
    {"models", "tracking"},
    {"data"},
    {"decoding", "training"},
    {"evaluation", "plan", "preflight", "serving"},
    {"promotion"},
    {"report", "forecast"},
    {"findings"},
    {"cli"},
)
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}

# Package -> the only files of bard_core that may import it.
HOMES: dict[str, set[str]] = {
    "flytekit": set(),
    "flytekitplugins": set(),
    "ray": set(),
    "tasks": set(),
    "workflows": set(),
    "mlflow": {f"bard_core/tracking/{name}.py" for name in ("models", "pipelines", "registry", "runs")},
    "lmms_eval": {"bard_core/evaluation/lmms_plugin.py", "bard_core/evaluation/lmms_score.py"},
}
# Needed by a stage, not by the library: bard_core must import on a machine without them.
OPTIONAL = {
    "boto3",
    "botocore",
    "datasets",
    "av",
    "huggingface_hub",
    "matplotlib",
    "mlflow",
    "peft",
    "pyarrow",
    "s3fs",
    "torchvision",
}


class Import(NamedTuple):
    """One imported module at one place; ``at_import``: it runs when the file is imported."""

    file: str
    line: int
    module: str
    at_import: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def modules_of(node: ast.AST, package: str) -> list[str]:
    """Dotted names that an import statement may load; ``from a import b`` may load ``a.b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def imports_of(source: str, file: str) -> list[Import]:
    """All imports of one file, given as its text and its path from the root."""
    tree = ast.parse(source)
    deferred = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
        for inner in ast.walk(outer)
    }
    package = ".".join(Path(file).parent.parts)
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return [Import(file, node.lineno, name, id(node) not in deferred) for node in nodes for name in modules_of(node, package)]


def imports_in(folder: str) -> list[Import]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} holds no Python: the rules below would hold for nothing"
    return [item for path in files for item in imports_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())]


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "bard_core" and len(parts) > 1 else None


def broken_floors(imports: list[Import]) -> list[str]:
    """Imports between rooms that do not go down."""
    broken = []
    for item in imports:
        here, there = Path(item.file).parts[1].removesuffix(".py"), room_of(item.module)
        if here == "__init__" or there is None or here == there or there not in FLOOR_OF:
            continue
        if FLOOR_OF[there] >= FLOOR_OF[here]:
            broken.append(str(item))
    return broken


def test_each_room_stands_on_a_floor() -> None:
    places = [path for path in (ROOT / "bard_core").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    rooms = {path.name.removesuffix(".py") for path in places}
    assert rooms - {"__init__"} <= set(FLOOR_OF), "a new room needs a floor in FLOORS"


def test_rooms_import_only_from_below() -> None:
    assert broken_floors(imports_in("bard_core")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from bard_core.training.loop import train",
        "from bard_core import training",
        "def f():\n    import bard_core.training",
        "from ..training import loop",
    ],
)
def test_a_forbidden_import_is_seen_however_it_is_written(source: str) -> None:
    assert broken_floors(imports_of(source, "bard_core/data/batches.py")) != []


def test_diffusion_imports_nothing_of_ours() -> None:
    strangers = [str(item) for item in imports_in("bard_core/diffusion") if (room_of(item.module) or "diffusion") != "diffusion"]
    assert strangers == []


@pytest.mark.parametrize("package", sorted(HOMES))
def test_frameworks_stay_in_their_files(package: str) -> None:
    strays = [str(i) for i in imports_in("bard_core") if i.module.split(".")[0] == package and i.file not in HOMES[package]]
    assert strays == []


def test_optional_packages_are_imported_only_when_used() -> None:
    eager = [str(i) for i in imports_in("bard_core") if i.at_import and i.module.split(".")[0] in OPTIONAL]
    assert eager == []


def test_only_the_evaluation_room_reaches_for_the_lmms_plugin_and_only_when_used() -> None:
    users = [i for i in imports_in("bard_core") + imports_in("tasks") if i.module.startswith("bard_core.evaluation.lmms_")]
    assert [
        str(i)
        for i in users
        if not i.file.startswith("bard_core/evaluation/lmms_") and (i.at_import or "/evaluation/" not in i.file)
    ] == []


def test_workflows_only_compose() -> None:
    ours = [i for i in imports_in("workflows") if i.module.split(".")[0] in ("bard_core", "tasks", "workflows")]
    allowed = ("config", "store", "promotion")  # the types that travel
    assert [str(i) for i in ours if i.module.startswith("bard_core") and room_of(i.module) not in allowed] == []


def test_tasks_import_no_workflow_and_mlflow_goes_through_tracking() -> None:
    assert [str(i) for i in imports_in("tasks") if i.module.split(".")[0] in ("workflows", "mlflow", "lmms_eval")] == []


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").glob("*.py")), ids=lambda path: path.name)
def test_task_bodies_are_thin(path: Path) -> None:
    tasks = [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef) and n.decorator_list]
    long = [f"{path.name}:{n.name}" for n in tasks if (n.end_lineno or 0) - n.body[0].lineno > 40]
    assert long == [], "move the work into bard_core"
