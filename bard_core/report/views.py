"""The views of ``report.json`` in plain text: tables for the terminal, and Markdown. ``page`` has the HTML."""

from collections.abc import Sequence
from typing import Any

from bard_core.report.verdict import sentence
from bard_core.store import provenance

COLUMNS = ("model", "block", "accuracy", "TPF", "tok/s", "speed-up vs AR")
SWEEP = ("model", "threshold", "accuracy", "TPF", "tok/s", "speed-up vs AR", "AUP")
SELF_SPECULATION_NOTE = "Diamonds: self-speculation, which says what the model's own autoregressive mode would say."
AGAINST = ("model", "difference, points", "better : worse", "p", "smallest detectable, points")
TRAINING = ("model", "steps", "waited for checkpoints", "from start to first step, s")
NOTE = (
    "TPF: real tokens a forward of the language body after prefill, over the whole suite. tok/s: greedy, batch 1, real tokens a "
    "second of decoding after prefill. Speed-up: tok/s over the source's autoregressive decoding, both in turn in one run."
)
SWEEP_NOTE = (
    "The same models at other confidence thresholds; the verdict above takes the best of them. AUP: area under accuracy (%) over "
    "TPF, less the weight of lost accuracy (Qian et al. 2025); autoregression scores its accuracy."
)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as the table prints it, in the order of :data:`COLUMNS`."""
    return (
        row["model"] + (" (partial)" if row["missing"] else ""),
        "AR" if row["block_size"] == 1 else str(row["block_size"]),
        f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_stderr']:.1f} %",
        f"{row['tokens_per_forward']:.2f}",
        f"{row['tokens_per_s']:.0f}",
        f"{row['speedup']:.2f}x",
    )


def against_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A paired comparison as the table prints it, in the order of :data:`AGAINST`."""
    return (
        row["model"],
        f"{100 * row['difference']:+.1f} ± {100 * row['stderr']:.1f}",
        f"{row['wins']} : {row['losses']}",
        f"{row['p_value']:.2g}",
        f"{100 * row['smallest_detectable']:.1f}",
    )


def console_table(table: Sequence[dict[str, Any]]) -> str:
    """The table in fixed-width text, within 100 columns."""
    lines = [COLUMNS, *(cells(row) for row in table)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    lines.insert(1, tuple("-" * width for width in widths))
    aligned = [[line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines]
    return "\n".join("  ".join(line) for line in aligned)


def sweep_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the sweep as the table prints it, in the order of :data:`SWEEP`."""
    return (
        row["model"],
        _threshold(row["confidence_threshold"]),
        f"{100 * row['accuracy']:.1f} %",
        f"{row['tokens_per_forward']:.2f}",
        f"{row['tokens_per_s']:.0f}",
        f"{row['speedup']:.2f}x",
        f"{row['aup']:.0f}",
    )


def _threshold(value: float | None) -> str:
    return "self-speculative" if value is None else f"{value:g}"


def training_cells(curves: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """What checkpoints cost the last start of each run, and how long it took to start, in the order of :data:`TRAINING`."""
    rows = []
    for name, curve in curves.items():
        if curve and (seconds := curve[-1].get("train_s")):
            last = curve[-1]
            share = last["checkpoint_blocked_s"] / seconds
            rows.append([name, f"{last['step']:.0f}", f"{share:.1%} of {seconds:.0f} s", f"{last['startup_s']:.1f}"])
    return rows


def markdown(body: dict[str, Any]) -> str:
    """report.md from report.json's content."""
    lines = [
        f"# {body['title']}",
        "",
        sentence(body["verdict"]),
        "",
        *_markdown_table(COLUMNS, [cells(row) for row in body["rows"]]),
    ]
    lines += ["", NOTE, "", "![accuracy and speed](frontier.png)", "", "![loss curves](curves.png)", ""]
    if body["sweep"]:
        table = _markdown_table(SWEEP, [sweep_cells(row) for row in body["sweep"]])
        lines += ["## Over thresholds", "", SWEEP_NOTE, "", *table, ""]
    if rows := training_cells(body["curves"]):
        lines += ["## Training", "", *_markdown_table(TRAINING, rows), ""]
    if data := provenance.lines(body["data"]):
        lines += ["## Data", "", *_markdown_table(provenance.HEAD, data), ""]
    lines += ["## Against the source, sample by sample", ""]
    lines += [*_markdown_table(AGAINST, [against_cells(row) for row in body["against_source"]]), "", "## Samples", ""]
    for sample in body["samples"]:
        lines += [f"**{sample['question']}** {_code(sample['reference'])}", ""]
        for name, text in sample["answers"].items():
            lines.append(f"- {name}: {_code(text)}{'' if sample['right'][name] else ' (wrong)'}")
        lines.append("")
    return "\n".join(lines)


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _code(text: str) -> str:
    """Any answer on one line of Markdown, however broken it is."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`" if text.strip() else "(nothing)"


def curves_markdown(body: dict[str, Any]) -> str:
    """report.md of trainings alone: picture, then first and last loss and speed of each."""
    lines = [f"# {body['title']}", "", "![loss curves](curves.png)", ""]
    rows = [
        (label, f"{records[-1]['step']:.0f}", f"{records[0]['loss']:.3f}", f"{records[-1]['loss']:.3f}")
        for label, records in body["curves"].items()
    ]
    lines += _markdown_table(("training", "steps", "first loss", "last loss"), rows)
    return "\n".join([*lines, "", "Losses of different objectives are on different scales: compare shapes, not heights.", ""])
