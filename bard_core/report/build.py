"""report: results in, ``report.json`` -> ``report.md`` and ``report.html`` out.

``report.json`` holds every number, unrounded; the other two are ``views`` of it, and ``page``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from bard_core.config.sections.evaluation import DecodingConfig, GateConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.evaluation.compare import load_samples, on_frontier, paired, source_of
from bard_core.evaluation.tradeoff import accuracy_under_parallelism, points
from bard_core.report import changes, samples
from bard_core.report.machine import describe
from bard_core.report.page import page
from bard_core.report.pictures import curves_png, curves_svgs, frontier_png, frontier_svgs
from bard_core.report.verdict import verdict
from bard_core.report.views import curves_markdown, markdown
from bard_core.store import artifacts, provenance, storage, workshop
from bard_core.store.refs import CheckpointRef, DatasetRef, EvalResult, ReportRef
from bard_core.training.curve import read_curve


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


def lineage(results: Sequence[EvalResult], configuration: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What every model was trained from, and by whom a student was taught."""
    names = {result.model.key: result.model.name for result in results}
    teacher = str((configuration.get("swd") or {}).get("teacher", SWDConfig.model_fields["teacher"].default))
    return [
        {
            "model": result.model.name,
            "parent": names.get(result.model.parent_sha256 or "", (result.model.parent_sha256 or "")[:12]),
            "teacher": teacher if result.model.stage == "swd" else "",
        }
        for result in results
    ]


@dataclass(frozen=True)
class Context:
    """What a report says besides the results.

    Attributes:
        configuration: the sections of the configuration file that led to them.
        gate: what a model must show to be shipped. made_by: commit and image.
    """

    configuration: Mapping[str, Any]
    gate: GateConfig
    made_by: Mapping[str, str]


def build(results: Sequence[EvalResult], dataset: DatasetRef, output_uri: str, title: str, context: Context) -> ReportRef:
    """Write and commit the report; one that stands is kept, since the answer it shows was timed and would be another.

    Raises:
        ArtifactError: an evaluation is torn.
        ComparisonError: there is not exactly one source model among the results, or they judged different samples.
    """
    if (standing := artifacts.standing(output_uri)) is not None:
        return _ref(output_uri, standing)
    table, sweep, against = rows(results), sweep_rows(results), against_source(results)
    curves = {result.model.name: _curve(result) for result in results}
    found = verdict(results, context.gate)
    shown_by = _most_telling(results, found["ship"])
    shown = samples.choose(results, dataset, shown_by.model.name)
    body = {
        "title": title,
        "verdict": found,
        "rows": table,
        "sweep": sweep,
        "lineage": lineage(results, context.configuration),
        "against_source": against,
        "curves": curves,
        "data": [provenance.of_run(result.model.curve_uri) for result in results if result.model.curve_uri],
        "samples": shown.records,
        "watched": _watched(results, dataset, shown_by, context),
        "configuration": dict(context.configuration),
        "made_by": dict(context.made_by),
        "machine": describe(),
        "reproduce": _commands(context.made_by.get("git_commit", "")),
    }
    body["since"] = changes.since(changes.last_before(output_uri), body)
    plots = {"frontier": frontier_svgs(table, sweep), "curves": curves_svgs(curves)}
    with workshop.scratch("report") as scratch:
        out = scratch / "report"
        out.mkdir()
        (out / "report.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        (out / "config.yaml").write_text(yaml.safe_dump(body["configuration"], sort_keys=False), encoding="utf-8")
        (out / "frontier.png").write_bytes(frontier_png(table, sweep))
        (out / "curves.png").write_bytes(curves_png(curves))
        (out / "report.md").write_text(markdown(body), encoding="utf-8")
        (out / "report.html").write_text(page(body, plots, shown.images), encoding="utf-8")
        manifest = artifacts.commit_directory(out, output_uri, kind="report")
    changes.remember(output_uri)
    return _ref(output_uri, manifest)


def _ref(uri: str, manifest: artifacts.Manifest) -> ReportRef:
    return ReportRef(uri=uri, manifest_sha256=manifest.digest, markdown=storage.join(uri, "report.md"))


def _most_telling(results: Sequence[EvalResult], ship: str | None) -> EvalResult:
    """The model whose answers are shown: the shipped one, else the most accurate that is not the source."""
    source = source_of(results)
    others = [result for result in results if result is not source] or [source]
    return next((result for result in others if result.model.name == ship), max(others, key=lambda result: result.accuracy))


def _watched(results: Sequence[EvalResult], dataset: DatasetRef, model: EvalResult, context: Context) -> dict[str, Any] | None:
    source = source_of(results)
    document = None if model is source else samples.slowest(model, dataset)
    if document is None:
        return None
    decoding = DecodingConfig.model_validate((context.configuration.get("evaluation") or {}).get("decoding") or {})
    return samples.watch(model, source, document, decoding)


def _commands(commit: str) -> list[str]:
    whole = commit and "+" not in commit and commit != "unknown"
    return [*([f"git checkout {commit}"] if whole else []), "make demo CONFIG=config.yaml"]


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
    return _ref(output_uri, manifest)


def _curve(result: EvalResult) -> list[dict[str, float]]:
    return [] if result.model.curve_uri is None else read_curve(result.model.curve_uri)
