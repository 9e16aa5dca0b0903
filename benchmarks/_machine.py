"""What every benchmark writes beside its numbers: the machine, without its name, and where the result goes."""

import json
from pathlib import Path
from typing import Any

from bard_core.report.machine import describe

RESULTS = Path(__file__).parent / "results"


def path(name: str) -> Path:
    """``results/<name>-<machine>.json``, the machine being its GPU or its number of cores."""
    machine = describe()
    kind = machine["gpu"].split(",")[0].lower().replace(" ", "-") if machine["gpu"] else f"cpu{machine['cores']}"
    return RESULTS / f"{name}-{kind}.json"


def write(name: str, body: dict[str, Any]) -> Path:
    """Write a result to its ``path``."""
    RESULTS.mkdir(exist_ok=True)
    target = path(name)
    target.write_text(json.dumps({"machine": describe(), **body}, indent=2) + "\n", encoding="utf-8")
    return target
