"""report: results in, ``report.json`` -> ``report.md`` and ``report.html`` out, and the table for the terminal.

``report.json`` holds every number; the other two are views of it. The HTML is one file: table, accuracy-speed frontier, loss
curves, and samples with their images.
"""

import base64
import html
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bard_core import artifacts, storage
from bard_core.artifacts import DatasetRef, EvalResult, ReportRef

COLUMNS = ("model", "block", "accuracy", "TPF", "tok/s", "speed-up vs AR")
SAMPLES = 4


def rows(results: Sequence[EvalResult]) -> list[dict[str, Any]]:
    """One row a model: what the table shows, unrounded."""
    return [
        {
            "model": result.model.name,
            "stage": result.model.stage,
            "block_size": result.model.block_size,
            "accuracy": result.accuracy,
            "accuracy_stderr": result.accuracy_stderr,
            "num_samples": result.num_samples,
            "tokens_per_forward": result.tokens_per_forward,
            "tokens_per_s": result.tokens_per_s,
            "ar_tokens_per_s": result.ar_tokens_per_s,
            "speedup": result.speedup,
            "model_uri": result.model.uri,
            "model_sha256": result.model.key,
            "evaluation_uri": result.uri,
        }
        for result in results
    ]


def at_parity(table: Sequence[dict[str, Any]], margin: float = 0.0) -> dict[str, Any] | None:
    """The fastest block-diffusion model whose accuracy is at least the source's minus ``margin``; None when there is none."""
    (source,) = [row for row in table if row["stage"] == "source"]
    fit = [row for row in table if row["stage"] != "source" and row["accuracy"] >= source["accuracy"] - margin]
    return max(fit, key=lambda row: row["speedup"], default=None)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as the table prints it, in the order of :data:`COLUMNS`."""
    return (
        row["model"],
        "AR" if row["block_size"] == 1 else str(row["block_size"]),
        f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_stderr']:.1f} %",
        f"{row['tokens_per_forward']:.2f}",
        f"{row['tokens_per_s']:.0f}",
        f"{row['speedup']:.2f}x",
    )


def console_table(table: Sequence[dict[str, Any]]) -> str:
    """The table in fixed-width text, within 80 columns."""
    lines = [COLUMNS, *(cells(row) for row in table)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))) for line in lines]
    text.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(text)


def verdict(table: Sequence[dict[str, Any]]) -> str:
    """One sentence: the best speed-up at the source's accuracy and at 2.5 points below it."""
    parts = []
    for margin, words in ((0.0, "at equal accuracy"), (0.025, "within 2.5 points of it")):
        best = at_parity(table, margin)
        parts.append(f"{words}: {best['speedup']:.2f}x ({best['model']})" if best else f"{words}: none")
    return "Speed-up over autoregressive decoding, " + "; ".join(parts) + "."


def build(results: Sequence[EvalResult], dataset: DatasetRef, output_uri: str, title: str) -> ReportRef:
    """Write and commit the report.

    Raises:
        ArtifactError: an evaluation is torn.
        ValueError: there is not exactly one source model among the results.
    """
    table = rows(results)
    if sum(row["stage"] == "source" for row in table) != 1:
        raise ValueError("a report compares with exactly one source model; evaluate the source once")
    curves = {result.model.name: _curve(result) for result in results}
    samples = _samples(results, dataset)
    body = {"title": title, "rows": table, "verdict": verdict(table), "curves": curves, "samples": samples["records"]}
    workshop = storage.home() / "staging"
    workshop.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="report-", dir=workshop) as scratch:
        out = Path(scratch) / "report"
        out.mkdir()
        (out / "report.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        (out / "frontier.png").write_bytes(frontier_png(table))
        (out / "curves.png").write_bytes(curves_png(curves))
        (out / "report.md").write_text(markdown(body), encoding="utf-8")
        (out / "report.html").write_text(page(body, out, samples["images"]), encoding="utf-8")
        manifest = artifacts.commit_directory(out, output_uri, kind="report")
    return ReportRef(uri=output_uri, manifest_sha256=manifest.digest, markdown=storage.join(output_uri, "report.md"))


def _curve(result: EvalResult) -> list[dict[str, float]]:
    if result.model.curve_uri is None:
        return []
    return [json.loads(line) for line in storage.read_bytes(result.model.curve_uri).decode().splitlines()]


def _samples(results: Sequence[EvalResult], dataset: DatasetRef) -> dict[str, Any]:
    """The first samples: question, reference, every model's answer; and their images apart."""
    import pyarrow.parquet as pq

    folder = artifacts.fetch(dataset)
    documents = [row for shard in sorted((folder / "eval").glob("*.parquet")) for row in pq.read_table(shard).to_pylist()]
    step = max(1, len(documents) // SAMPLES)
    chosen = list(range(0, len(documents), step))[:SAMPLES]
    answers: dict[int, dict[str, str]] = {i: {} for i in chosen}
    for result in results:
        for line in (artifacts.fetch(result) / "samples.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["doc_id"] in answers:
                answers[record["doc_id"]][result.model.name] = record["text"]
    records = [
        {"question": _question(documents[i]), "reference": documents[i]["answer"], "answers": answers[i]} for i in chosen
    ]
    return {"records": records, "images": [documents[i]["images"][0] if documents[i]["images"] else None for i in chosen]}


def _question(document: dict[str, Any]) -> str:
    last = [message for message in json.loads(document["messages"]) if message["role"] == "user"][-1]
    return " ".join(item["text"] for item in last["content"] if item["type"] == "text").strip()


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def frontier_png(table: Sequence[dict[str, Any]]) -> bytes:
    """Accuracy over speed-up, a point a model, with the standard error."""
    figure, axes = _figure(7, 4)
    for row in table:
        colour = {"source": "black", "pbm": "tab:blue", "swd": "tab:red"}[row["stage"]]
        axes.errorbar(row["speedup"], 100 * row["accuracy"], yerr=100 * row["accuracy_stderr"], fmt="o", color=colour, capsize=3)
        axes.annotate(row["model"], (row["speedup"], 100 * row["accuracy"]), textcoords="offset points", xytext=(7, 5))
    axes.set(xlabel="speed-up over autoregressive decoding (batch 1)", ylabel="exact answers, %")
    axes.grid(alpha=0.3)
    return _png(figure)


def curves_png(curves: dict[str, list[dict[str, float]]]) -> bytes:
    """Training loss over steps, a line a model."""
    figure, axes = _figure(7, 4)
    for name, records in curves.items():
        if records:
            axes.plot([record["step"] for record in records], [record["loss"] for record in records], label=name)
    axes.set(xlabel="step", ylabel="training loss (objectives differ)", yscale="log")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return _png(figure)


def markdown(body: dict[str, Any]) -> str:
    """report.md from report.json's content."""
    lines = [f"# {body['title']}", "", body["verdict"], "", "| " + " | ".join(COLUMNS) + " |"]
    lines.append("|---|" + "---:|" * (len(COLUMNS) - 1))
    lines += ["| " + " | ".join(cells(row)) + " |" for row in body["rows"]]
    lines += ["", "![accuracy and speed](frontier.png)", "", "![loss curves](curves.png)", "", "## Samples", ""]
    for sample in body["samples"]:
        lines += [f"**{sample['question']}** `{sample['reference']}`", ""]
        lines += [f"- {name}: `{text}`{'' if text == sample['reference'] else ' (wrong)'}" for name, text in sample["answers"].items()]
        lines.append("")
    notes = "TPF: real tokens a forward of the language body after prefill. tok/s: greedy, batch 1, decoding only; speed-up: median"
    return "\n".join([*lines, notes + " ratio a prompt to the source model's autoregressive decoding, interleaved in one run.", ""])


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2733}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .7rem;border-bottom:1px solid #d5dbe1;text-align:right}
td:first-child,th:first-child{text-align:left}img.plot{max-width:49%}figure{display:flex;gap:1rem;margin:1rem 0}
figure img{width:9rem;image-rendering:pixelated;align-self:flex-start}code{background:#f3f5f7;padding:0 .25rem}.wrong{color:#b3261e}"""


def page(body: dict[str, Any], folder: Path, images: Sequence[bytes | None]) -> str:
    """report.html: one file with everything inline."""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    table = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells(row)) + "</tr>" for row in body["rows"])
    plots = "".join(
        f'<img class="plot" alt="{name}" src="{_inline((folder / f"{name}.png").read_bytes())}">' for name in ("frontier", "curves")
    )
    figures = "".join(_sample_html(sample, image) for sample, image in zip(body["samples"], images, strict=True))
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(body['title'])}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(body['title'])}</h1><p>{html.escape(body['verdict'])}</p><table><tr>{head}</tr>{table}</table>"
        f"{plots}<h2>Samples</h2>{figures}</html>\n"
    )


def _sample_html(sample: dict[str, Any], image: bytes | None) -> str:
    picture = f'<img alt="" src="{_inline(image)}">' if image else ""
    answers = "".join(
        f"<li{'' if text == sample['reference'] else ' class=wrong'}>{html.escape(name)}: <code>{html.escape(text)}</code></li>"
        for name, text in sample["answers"].items()
    )
    question, reference = html.escape(sample["question"]), html.escape(sample["reference"])
    return f"<figure>{picture}<div><b>{question}</b> <code>{reference}</code><ul>{answers}</ul></div></figure>"


def _inline(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()
