"""README's headline tables, written from the reports of demos.

    python docs/headline.py [report.json ...]    # keep what these reports say, if any, and write README's tables anew

What is kept is ``benchmarks/results/headline.json``: by configuration, the rows, the machine and the commit. In README a table
stands between ``<!-- headline: <configuration> -->`` and ``<!-- end -->``.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT, README = ROOT / "benchmarks" / "results" / "headline.json", ROOT / "README.md"
COLUMNS = ("model", "block_size", "accuracy", "accuracy_stderr", "num_samples", "tokens_per_forward", "tokens_per_s", "speedup")
PLACE = re.compile(r"(<!-- headline: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """What README needs of a report, unrounded, and where its numbers come from."""
    rows = [{name: row[name] for name in COLUMNS} for row in report["rows"]]
    return {"rows": rows, "machine": report["machine"], "made_by": report["made_by"]}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; the first is the source, which decodes token by token."""
    lines = ["| model | block | accuracy | TPF | tok/s | speed-up vs AR |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        block = "AR" if row["block_size"] == 1 else row["block_size"]
        accuracy = f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_stderr']:.1f} %"
        rates = f"{row['tokens_per_forward']:.2f} | {row['tokens_per_s']:.0f} | {row['speedup']:.2f}x"
        lines.append(f"| {row['model']} | {block} | {accuracy} | {rates} |")
    return "\n".join(lines) + "\n"


def written(text: str, reports: dict[str, Any]) -> str:
    """The text with every headline table in it from ``reports``.

    Raises:
        KeyError: a table is of a configuration that no report is kept of.
    """
    return PLACE.sub(lambda found: found[1] + table(reports[found[2]]["rows"]) + found[3], text)


def main(paths: list[str]) -> None:
    reports: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    for path in paths:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        reports[report["configuration"]["name"]] = kept(report)
    KEPT.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    README.write_text(written(README.read_text(encoding="utf-8"), reports), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
