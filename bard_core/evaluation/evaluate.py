"""evaluate: one model, one suite, one result: the benchmarks' scores brought together, and speed against AR."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bard_core.config.sections.evaluation import DecodingConfig, EvaluationConfig
from bard_core.config.versions import VERSIONS
from bard_core.evaluation.benchmark import judge, lmms, quiet
from bard_core.evaluation.compare import load_samples
from bard_core.evaluation.speed import Speed, compare, take_turns
from bard_core.evaluation.suites import Benchmark, prepare_task, suite_digest, suite_of
from bard_core.evaluation.tradeoff import decodings
from bard_core.store import artifacts, storage, workshop
from bard_core.store.refs import BenchmarkRef, BenchmarkScore, DatasetRef, EvalResult, ModelRef, OperatingPoint

NO_FACTS: Any = {"uri": True, "manifest_sha256": True, "model": {"uri", "curve_uri"}}  # places, and what names this artifact
Decodings = Mapping[float | None, DecodingConfig]


def protocol_digest(config: EvaluationConfig, dataset: DatasetRef) -> str:
    """What a score is a score under: the suite with its data, how answers are decoded, and the code that does both."""
    code = [VERSIONS["answers"], VERSIONS["evaluate"]]
    return artifacts.digest([code, suite_digest(suite_of(config), dataset.key), config.decoding])


def evaluate(
    model: ModelRef,
    source: ModelRef,
    dataset: DatasetRef,
    config: EvaluationConfig,
    output_uri: str,
    judged: Sequence[BenchmarkRef] | None = None,
) -> EvalResult:
    """Judge ``model`` and commit ``results.json``, ``samples.jsonl`` and every benchmark's own files to ``output_uri``.

    What is already there for the same weights, baseline, benchmarks and settings is returned as it is.

    ``source`` is the baseline of speed, decoded in turn with the model in the same run. Accuracy and tokens per forward come
    from the whole suite, speed from prompts spread over it, and so for each of ``config.sweep_thresholds``.

    Args:
        judged: the suite's benchmarks where they were judged already (in parallel); those that are not there failed and are
            named in ``missing``. None: judge them here.

    Raises:
        SuiteError, ArtifactError, RuntimeError: see ``benchmark.judge``; also when no benchmark gave a score.
    """
    suite = suite_of(config)
    answers = str(storage.home() / "artifacts" / "answers")
    if judged is None:
        judged = [judge(model, dataset, b, config, f"{output_uri}-{b.name}", answers) for b in suite.benchmarks]
    found = {ref.score.name: ref for ref in judged}
    present = [b for b in suite.benchmarks if b.name in found]
    if not present:
        raise RuntimeError(f"{model.name}: no benchmark of suite {suite.name!r} gave a score; see their errors above")
    refs = [found[b.name] for b in present]
    key = artifacts.digest([VERSIONS["evaluate"], source.key, dataset.key, config, [ref.key for ref in refs]])
    manifest = artifacts.standing(output_uri)
    if manifest is not None and (manifest.config_digest, manifest.parent_digest) == (key, model.key):
        return load_result(output_uri, manifest.digest, model)
    scores = tuple(ref.score for ref in refs)
    total = summarise(scores)
    swept: Decodings = {None: config.decoding}
    if model.stage != "source":
        swept = decodings(config, _clean_attention(model))
    with workshop.scratch("evaluate") as scratch:
        speeds = _time(model, source, dataset, present, config, swept, scratch)
        chosen = next(threshold for threshold, decoding in swept.items() if decoding == config.decoding)
        speed, sweep = speeds[chosen], []
        for threshold, decoding in swept.items() if len(swept) > 1 else ():
            point = total
            if threshold != chosen:
                other = config.model_copy(update={"decoding": decoding})
                uri = f"{output_uri}-at-{decoding.strategy if threshold is None else threshold}"
                point = summarise([judge(model, dataset, b, other, f"{uri}-{b.name}", answers).score for b in present])
            sweep.append(_operating_point(threshold, point, speeds[threshold]))
        out = scratch / "out"
        bodies, records = _gather(refs, out)
        result: dict[str, Any] = {
            "model": model,
            "suite": suite.name,
            "suite_digest": suite_digest(suite, dataset.key),
            "benchmarks": scores,
            "missing": tuple(b.name for b in suite.benchmarks if b.name not in found),
            **total._asdict(),
            "num_samples": len(records),
            "tokens_per_s": speed.tokens_per_s,
            "ar_tokens_per_s": speed.ar_tokens_per_s,
            "speedup": speed.speedup,
            "sweep": tuple(sweep),
        }
        plain = EvalResult(uri="", manifest_sha256="", **result).model_dump(mode="json", exclude=NO_FACTS)
        body = {
            **plain,
            "protocol_digest": protocol_digest(config, dataset),
            "dataset_sha256": dataset.key,
            "metric": "score",
            "speed": asdict(speed),
            "details": bodies,
        }
        (out / "results.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        (out / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        manifest = artifacts.commit_directory(out, output_uri, kind="evaluation", config_digest=key, parent_digest=model.key)
    return EvalResult(uri=output_uri, manifest_sha256=manifest.digest, **result)


class Summary(NamedTuple):
    """A suite's numbers: the mean of its benchmarks' accuracies, and tokens per forward over all samples."""

    accuracy: float
    accuracy_stderr: float
    tokens_per_forward: float


def summarise(scores: Sequence[BenchmarkScore]) -> Summary:
    """Bring the scores of a suite's benchmarks together."""
    return Summary(
        accuracy=math.fsum(score.accuracy for score in scores) / len(scores),
        accuracy_stderr=math.sqrt(math.fsum(score.accuracy_stderr**2 for score in scores)) / len(scores),
        tokens_per_forward=sum(score.real_tokens for score in scores) / max(1, sum(score.forwards for score in scores)),
    )


def _operating_point(threshold: float | None, total: Summary, speed: Speed) -> OperatingPoint:
    return OperatingPoint(
        confidence_threshold=threshold,
        accuracy=total.accuracy,
        tokens_per_forward=total.tokens_per_forward,
        tokens_per_s=speed.tokens_per_s,
        speedup=speed.speedup,
    )


def _clean_attention(model: ModelRef) -> str | None:
    """What the model's ``config.json`` records of its clean stream."""
    config: dict[str, Any] = json.loads((artifacts.fetch(model) / "config.json").read_text(encoding="utf-8"))
    return (config.get("bard") or {}).get("clean_attention")


def load_result(uri: str, manifest_sha256: str, model: ModelRef) -> EvalResult:
    """The result that the artifact of the model's evaluation holds, which says what was judged and not where it is.

    Raises:
        ArtifactError: it is missing, torn, or another one.
    """
    folder = artifacts.fetch(uri, manifest_sha256)
    body = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    known = {name: body[name] for name in EvalResult.model_fields if name in body}
    return EvalResult(uri=uri, manifest_sha256=manifest_sha256, **{**known, "model": model})


def _gather(refs: Sequence[BenchmarkRef], out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every benchmark's results and samples; its files are copied to ``out/<name>``."""
    bodies: dict[str, Any] = {}
    records: list[dict[str, Any]] = []
    for ref in refs:
        folder = artifacts.fetch(ref)
        bodies[ref.score.name] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        records += load_samples(ref)
        for path in sorted((folder / ref.score.name).rglob("*")):
            if path.is_file():
                target = out / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    out.mkdir(exist_ok=True)
    return bodies, records


def _time(
    model: ModelRef,
    source: ModelRef,
    dataset: DatasetRef,
    benchmarks: Sequence[Benchmark],
    config: EvaluationConfig,
    swept: Decodings,
    scratch: Path,
) -> dict[float | None, Speed]:
    """Speed of every decoding on prompts of every benchmark, one by one, in answers of at most the decoding's own limit."""
    plugin, scoring = lmms()
    prompts: list[Any] = []
    with quiet():
        baseline = plugin.BardChat(str(artifacts.fetch(source)), mode="ar", **config.decoding.model_dump())
        chats = dict.fromkeys(swept, baseline)
        if model.stage != "source":
            folder, loaded = str(artifacts.fetch(model)), None
            for threshold, decoding in swept.items():
                chats[threshold] = plugin.BardChat(folder, mode="block", model=loaded, **decoding.model_dump())
                loaded = chats[threshold].model
        asking = next(iter(chats.values()))
        for benchmark in benchmarks:
            place = scratch / benchmark.name
            place.mkdir()
            task = scoring.load_task(benchmark, prepare_task(benchmark, dataset, place))
            asking.follow(benchmark)
            prompts += asking.some_prompts(task, max(1, config.speed_samples // len(benchmarks)))
    decoders = {str(threshold): chat.decode for threshold, chat in chats.items() if chat is not baseline}
    timings = take_turns(prompts, {"ar": baseline.decode, **decoders})
    return {threshold: compare(timings.get(str(threshold), timings["ar"]), timings["ar"]) for threshold in swept}
