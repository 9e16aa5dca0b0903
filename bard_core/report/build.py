"""report: results in, ``report.json`` -> ``report.md`` and ``report.html`` out.

``report.json`` holds every number, unrounded; the other two are ``views`` of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bard_core.data.heldout import held_out
from bard_core.evaluation.compare import load_samples, on_frontier, paired, source_of
from bard_core.evaluation.tradeoff import accuracy_under_parallelism, points, speedup_at_parity
from bard_core.report.pictures import curves_png, frontier_png
from bard_core.report.views import curves_markdown, markdown, page
from bard_core.store import artifacts, provenance, storage, workshop
from bard_core.store.refs import CheckpointRef, DatasetRef, EvalResult, OperatingPoint, ReportRef
from bard_core.training.curve import read_curve

SAMPLES = 4


def rows(results: Sequence[EvalResult]) -> list[dict[str, Any]]:
    """One row a model: what the table shows, unrounded."""
    best = on_frontier([(result.speedup, result.accuracy) for result in results])
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
            "on_frontier": undominated,
            "suite": result.suite,
            "suite_digest": result.suite_digest,
            "benchmarks": [score.model_dump(mode="json") for score in result.benchmarks],
            "missing": list(result.missing),
            "model_uri": result.model.uri,
            "model_sha256": result.model.key,
            "evaluation_uri": result.uri,
        }
        for result, undominated in zip(results, best, strict=True)
    ]


def against_source(results: Sequence[EvalResult]) -> list[dict[str, Any]]:
    """Every other model against the source, sample by sample (``compare.paired``)."""
    source = source_of(results)
    metric = json.loads((artifacts.fetch(source) / "results.json").read_text(encoding="utf-8"))["metric"]
    baseline = load_samples(source)
    return [
        {"model": result.model.name, **asdict(paired(baseline, load_samples(result), metric))}
        for result in results
        if result is not source
    ]


def sweep_rows(results: Sequence[EvalResult]) -> list[dict[str, Any]]:
    """One row a model and threshold of those that were swept, unrounded; AUP is the model's."""
    best = max(point.accuracy for result in results for point in points(result))
    return [
        {"model": result.model.name, **point.model_dump(), "aup": accuracy_under_parallelism(result.sweep, best)}
        for result in results
        for point in result.sweep
    ]


def verdict(results: Sequence[EvalResult]) -> str:
    """One sentence: the best speed-up, over models and thresholds, at the source's accuracy, and 0.5 and 2.5 points below."""
    parts = []
    for margin, words in (
        (0.0, "at equal accuracy"),
        (0.005, "within 0.5 points of it"),
        (0.025, "within 2.5 points of it"),
    ):
        best = speedup_at_parity(results, margin)
        parts.append(f"{words}: {_found(*best)}" if best else f"{words}: none")
    return "Speed-up over autoregressive decoding, " + "; ".join(parts) + "."


def _found(result: EvalResult, point: OperatingPoint) -> str:
    how = f", threshold {point.confidence_threshold:g}" if point.confidence_threshold is not None else ""
    how = ", self-speculative" if result.sweep and not how else how
    return f"{point.speedup:.2f}x ({result.model.name}{how})"


def build(results: Sequence[EvalResult], dataset: DatasetRef, output_uri: str, title: str) -> ReportRef:
    """Write and commit the report.

    Raises:
        ArtifactError: an evaluation is torn.
        ComparisonError: there is not exactly one source model among the results, or they judged different samples.
    """
    table = rows(results)
    against = against_source(results)
    sweep = sweep_rows(results)
    curves = {result.model.name: _curve(result) for result in results}
    samples, images = _samples(results, dataset)
    body = {
        "title": title,
        "rows": table,
        "verdict": verdict(results),
        "sweep": sweep,
        "against_source": against,
        "curves": curves,
        "data": [provenance.of_run(result.model.curve_uri) for result in results if result.model.curve_uri],
        "samples": samples,
    }
    with workshop.scratch("report") as scratch:
        out = scratch / "report"
        out.mkdir()
        (out / "report.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        (out / "frontier.png").write_bytes(frontier_png(table, sweep))
        (out / "curves.png").write_bytes(curves_png(curves))
        (out / "report.md").write_text(markdown(body), encoding="utf-8")
        (out / "report.html").write_text(page(body, out, images), encoding="utf-8")
        manifest = artifacts.commit_directory(out, output_uri, kind="report")
    return ReportRef(uri=output_uri, manifest_sha256=manifest.digest, markdown=storage.join(output_uri, "report.md"))


def build_curves(checkpoints: Mapping[str, CheckpointRef], output_uri: str, title: str) -> ReportRef:
    """Write and commit a report of trainings alone: the loss of each over steps, beside one another."""
    curves = {label: read_curve(checkpoint.curve_uri) for label, checkpoint in checkpoints.items()}
    body = {"title": title, "curves": curves}
    with workshop.scratch("report") as scratch:
        out = scratch / "report"
        out.mkdir()
        (out / "report.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        (out / "curves.png").write_bytes(curves_png(curves))
        (out / "report.md").write_text(curves_markdown(body), encoding="utf-8")
        manifest = artifacts.commit_directory(out, output_uri, kind="report")
    return ReportRef(uri=output_uri, manifest_sha256=manifest.digest, markdown=storage.join(output_uri, "report.md"))


def _curve(result: EvalResult) -> list[dict[str, float]]:
    return [] if result.model.curve_uri is None else read_curve(result.model.curve_uri)


def _samples(results: Sequence[EvalResult], dataset: DatasetRef) -> tuple[list[dict[str, Any]], list[list[bytes]]]:
    """Samples of the prepared dataset, spread over those judged: question, reference, every model's answer; and their images."""
    answers = {result.model.name: {record["id"]: record["text"] for record in load_samples(result)} for result in results}
    judged = list(answers[source_of(results).model.name])
    chosen = judged[:: max(1, len(judged) // SAMPLES)][:SAMPLES]
    documents = {row["id"]: row for row in held_out(dataset, chosen)}
    chosen = [key for key in chosen if key in documents]  # public benchmarks bring documents of their own
    records = [
        {
            "id": key,
            "question": _question(documents[key]),
            "reference": documents[key]["answer"],
            "answers": {name: texts[key] for name, texts in answers.items()},
        }
        for key in chosen
    ]
    return records, [documents[key]["images"] for key in chosen]


def _question(document: dict[str, Any]) -> str:
    last = [message for message in json.loads(document["messages"]) if message["role"] == "user"][-1]
    return " ".join(item["text"] for item in last["content"] if item["type"] == "text").strip()
