"""Fingerprints of the code that decides each stage's numbers: `make versions` writes ``fingerprints.json`` anew.

A stage's modules are what its roots import, however deep, without the rooms and files that only say where things are kept and how
a run is followed. A fingerprint is that of the syntax tree, so comments, docstrings and formatting do not count.
"""

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bard_core.config.versions import VERSIONS, Code

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("fingerprints.json")
NUMBERS_OF = "bard_core/config/versions.py"

ROOTS: dict[Code, list[str]] = {
    "prepare": ["bard_core.data.prepare"],
    "resolve": ["bard_core.models.convert"],
    "source": ["bard_core.training.stage"],
    "pbm": ["bard_core.training.stage"],
    "swd": ["bard_core.training.stage"],
    "teacher": ["bard_core.training.teacher"],
    "consolidate": ["bard_core.training.checkpoints.consolidate"],
    "answers": ["bard_core.evaluation.lmms_plugin"],
    "evaluate": ["bard_core.evaluation.evaluate"],
    "report": ["bard_core.report.build"],
}
# Values of a configuration are in the keys themselves; the rest decides no number.
NOWHERE = (
    "bard_core.config",
    "bard_core.store",
    "bard_core.tracking",
    "bard_core.training.checkpoints.retention",
    "bard_core.training.checkpoints.writer",
    "bard_core.training.curve",
    "bard_core.training.interrupts",
    "bard_core.training.spec",
    "bard_core.training.throughput",
)
NOT_OF: dict[Code, tuple[str, ...]] = {
    "source": ("bard_core.training.teacher",),
    "pbm": ("bard_core.training.teacher", "bard_core.lab"),
}


@cache
def _imports_of(path: Path) -> list[str]:
    """Dotted names of ours that a file imports, anywhere in it; ``from a import b`` may be the module ``a.b``."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.startswith("bard_core.")]


def _file_of(module: str) -> Path | None:
    """The file of a module, or of the one that an imported name is in."""
    parts = module.split(".")
    for end in range(len(parts), 1, -1):
        place = ROOT.joinpath(*parts[:end])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None


def modules_of(stage: Code) -> list[str]:
    """Paths of the files that decide a stage's numbers, sorted."""
    waiting, seen = list(ROOTS[stage]), set[Path]()
    while waiting:
        module = waiting.pop()
        left_out = any(module == one or module.startswith(f"{one}.") for one in (*NOWHERE, *NOT_OF.get(stage, ())))
        file = None if left_out else _file_of(module)
        if file is not None and file not in seen:
            seen.add(file)
            waiting += _imports_of(file)
    return sorted(file.relative_to(ROOT).as_posix() for file in seen)


def fingerprint(source: str) -> str:
    """16 hex digits of a file's syntax tree without docstrings; the same in every version of Python that reads it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _only_words(one)]  # type: ignore[attr-defined]
    return hashlib.sha256(json.dumps(_shape(tree)).encode()).hexdigest()[:16]


def _only_words(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _shape(node: Any) -> Any:
    if isinstance(node, ast.AST):
        fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
        return [type(node).__name__, {name: _shape(value) for name, value in sorted(fields.items())}]
    return [_shape(one) for one in node] if isinstance(node, list) else repr(node)


def current() -> dict[str, Any]:
    """What ``fingerprints.json`` should say now."""
    stages = {stage: modules_of(stage) for stage in ROOTS}
    files = sorted({file for modules in stages.values() for file in modules})
    return {
        "versions": dict(VERSIONS),
        "modules": {file: fingerprint((ROOT / file).read_text(encoding="utf-8")) for file in files},
    }


def unraised(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[Code, list[str]]:
    """Stages whose code differs from the record's and whose version does not: the files that differ."""
    before, after = recorded["modules"], now["modules"]
    changed = {stage: [file for file in modules_of(stage) if after[file] != before.get(file)] for stage in ROOTS}
    return {
        stage: files for stage, files in changed.items() if files and recorded["versions"].get(stage) == now["versions"][stage]
    }


def words(stages: Mapping[Code, list[str]]) -> str:
    """Which versions must rise, and why."""
    return "\n".join(
        f"{stage}: {', '.join(files)} changed, its version is still {VERSIONS[stage]}" for stage, files in stages.items()
    )


def main() -> None:
    now = current()
    recorded = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else now
    RECORD.write_text(json.dumps(now, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if open_stages := unraised(recorded, now):
        print(
            f"{words(open_stages)}\nRaise them in {NUMBERS_OF} and run make versions again, unless all numbers stayed the same."
        )
    else:
        print(f"{RECORD.relative_to(ROOT)} is up to date")


if __name__ == "__main__":
    main()
