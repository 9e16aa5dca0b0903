"""The table of the fault suite: the parts that ``make test-faults`` ran, brought together for ``results/`` and for the docs.

python benchmarks/_faults.py <folder of the parts>
"""

import json
import sys
from pathlib import Path
from typing import Any

from _machine import RESULTS, describe

PARTS = ("library", "tasks", "pipelines")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "faults.md"


def table(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One body of all parts; a part that was never run is named, and so is every test that failed."""
    rows = [{**row, "part": name} for name, part in parts.items() for row in part["faults"]]
    return {
        "injections": sum(row["times"] for row in rows),
        "kinds": len({row["fault"] for row in rows}),
        "lost, silent, hung or mended by hand": sum(len(part["failed"]) for part in parts.values()),
        "failed": [test for part in parts.values() for test in part["failed"]],
        "run again after a repair": [test for part in parts.values() for test in part["repaired"]],
        "never run": [name for name in PARTS if name not in parts],
        "minutes": {name: part["minutes"] for name, part in parts.items()},
        "faults": sorted(rows, key=lambda row: (PARTS.index(row["part"]), row["fault"], row["outcome"])),
    }


def page(body: dict[str, Any]) -> str:
    """The table as a page of the docs."""
    minutes, again = sum(body["minutes"].values()), len(body["run again after a repair"])
    lines = [
        "# Faults",
        "",
        f"`make test-faults` injects {body['injections']:,} faults of {body['kinds']} kinds, for real: processes are killed,",
        "bits flipped, disks filled, servers and storage taken away. A row stands here once its test has seen that no result was",
        "lost, that the fault was told, that nothing hung, and that nobody had to do more than run the same command again.",
        "",
        f"Faults that were not survived: {body['lost, silent, hung or mended by hand']}. "
        f"The suite took {minutes:.0f} minutes on {body['machine']['cores']} cores"
        + (f"; tests that failed, were mended and ran again: {again}" if again else "")
        + (f"; parts not run: {', '.join(body['never run'])}." if body["never run"] else "."),
        "",
        "| fault | times | what became of it |",
        "| --- | ---: | --- |",
        *(f"| {row['fault']} | {row['times']} | {row['outcome']} |" for row in body["faults"]),
    ]
    return "\n".join(lines) + "\n"


def main(folder: Path) -> None:
    found = {name: folder / f"{name}.json" for name in PARTS}
    parts = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.is_file()}
    body = {"machine": describe(), **table(parts)}
    (RESULTS / "faults.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(body), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
