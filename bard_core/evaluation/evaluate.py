"""evaluate: one model, one suite, one result: accuracy and tokens per forward through lmms-eval, then speed against AR."""

import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bard_core import artifacts, storage
from bard_core.artifacts import DatasetRef, EvalResult, ModelRef, OperatingPoint
from bard_core.config import EvaluationConfig
from bard_core.evaluation.compare import standard_error
from bard_core.evaluation.speed import Speed, compare, take_turns
from bard_core.evaluation.suites import Suite, prepare_suite
from bard_core.evaluation.tradeoff import decodings
from bard_core.models import bard_settings

if TYPE_CHECKING:
    from bard_core.evaluation.lmms_plugin import Scores

LIBRARIES = ("lmms_eval", "torch", "transformers")


def evaluate(model: ModelRef, source: ModelRef, dataset: DatasetRef, config: EvaluationConfig, output_uri: str) -> EvalResult:
    """Judge ``model`` and commit ``results.json`` and ``samples.jsonl`` to ``output_uri``.

    The source is decoded autoregressively, every other model in blocks. ``source`` is the baseline of speed, decoded in turn
    with the model in the same run. Accuracy and tokens per forward come from the whole suite, speed from a part of it, and so
    for each of ``config.sweep_thresholds``.

    Raises:
        SuiteError, ArtifactError, RuntimeError: see ``prepare_suite``, ``artifacts.fetch``, ``lmms_plugin.score``.
    """
    started = time.perf_counter()
    data, folder, source_folder = artifacts.fetch(dataset), artifacts.fetch(model), artifacts.fetch(source)
    workshop = storage.home() / "staging"
    workshop.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="evaluate-", dir=workshop) as scratch:
        suite = prepare_suite(config.suite, data, dataset.key, Path(scratch))
        scores, speed, sweep, place = _run(folder, source_folder, model.stage == "source", suite, config)
        records = scores.records
        accuracy = scores.metrics[suite.metric]
        stderr = standard_error([record[suite.metric] for record in records])
        tpf = _tokens_per_forward(scores)
        body = {
            "model": model.name,
            "model_sha256": model.key,
            "dataset_sha256": dataset.key,
            "suite": suite.name,
            "suite_digest": suite.digest,
            "prompt_variant": scores.prompt_variant,
            "decoding": {"mode": "ar" if model.stage == "source" else "block", **config.decoding.model_dump()},
            "batch_size": config.batch_size,
            "libraries": {name: version(name) for name in LIBRARIES},
            **place,
            "metric": suite.metric,
            "metrics": scores.metrics,
            "accuracy": accuracy,
            "accuracy_stderr": stderr,
            "num_samples": len(records),
            "tokens_per_forward": tpf,
            "speed": asdict(speed),
            "sweep": [point.model_dump() for point in sweep],
        }
        out = Path(scratch) / "out"
        out.mkdir()
        (out / "results.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        (out / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        manifest = artifacts.commit_directory(
            out, output_uri, kind="evaluation", config_digest=artifacts.digest(config), parent_digest=model.key
        )
    return EvalResult(
        uri=output_uri,
        manifest_sha256=manifest.digest,
        model=model,
        suite=suite.name,
        suite_digest=suite.digest,
        accuracy=accuracy,
        accuracy_stderr=stderr,
        num_samples=len(records),
        tokens_per_forward=tpf,
        tokens_per_s=speed.tokens_per_s,
        ar_tokens_per_s=speed.ar_tokens_per_s,
        speedup=speed.speedup,
        seconds=time.perf_counter() - started,
        sweep=sweep,
    )


def _run(
    folder: Path, source_folder: Path, is_source: bool, suite: Suite, config: EvaluationConfig
) -> tuple["Scores", Speed, tuple[OperatingPoint, ...], dict[str, str]]:
    """Score through lmms-eval, then time some of its prompts one by one; the last item says on what it ran."""
    plugin = _plugin()
    with _quiet():
        loaded = plugin.load_for_decoding(str(folder))
        loaded_source = loaded if is_source else plugin.load_for_decoding(str(source_folder))
    baseline = plugin.BardChat(
        str(source_folder), mode="ar", model=loaded_source, batch_size=config.batch_size, **config.decoding.model_dump()
    )
    swept = {None: config.decoding} if is_source else decodings(config, bard_settings(loaded))
    chosen = next(threshold for threshold, decoding in swept.items() if decoding == config.decoding)
    chats = (
        {chosen: baseline}
        if is_source
        else {
            threshold: plugin.BardChat(str(folder), model=loaded, batch_size=config.batch_size, **decoding.model_dump())
            for threshold, decoding in swept.items()
        }
    )
    with _quiet():
        scores = {t: plugin.score(chat, suite.task_folder, suite.task, config.max_samples) for t, chat in chats.items()}
    blocks = {} if is_source else {str(threshold): chat.decode for threshold, chat in chats.items()}
    timings = take_turns(chats[chosen].some_prompts(config.speed_samples), {"ar": baseline.decode, **blocks})
    speeds = {threshold: compare(timings["ar" if is_source else str(threshold)], timings["ar"]) for threshold in chats}
    sweep = tuple(
        OperatingPoint(
            confidence_threshold=threshold,
            accuracy=scores[threshold].metrics[suite.metric],
            tokens_per_forward=_tokens_per_forward(scores[threshold]),
            tokens_per_s=speed.tokens_per_s,
            speedup=speed.speedup,
        )
        for threshold, speed in speeds.items()
        if len(speeds) > 1
    )
    place = {"device": str(loaded.device), "dtype": str(loaded.dtype).removeprefix("torch.")}
    return scores[chosen], speeds[chosen], sweep, place


def _tokens_per_forward(scores: "Scores") -> float:
    return sum(record["real_tokens"] for record in scores.records) / sum(record["forwards"] for record in scores.records)


@cache
def _plugin() -> Any:
    """The plugin module. Importing lmms-eval takes seconds and ties loguru to the standard output; that is undone here."""
    try:
        with _quiet():
            from loguru import logger

            from bard_core.evaluation import lmms_plugin
    except ImportError as error:
        raise RuntimeError(f"evaluation needs lmms-eval: pip install 'bard[evaluate]' ({error})") from error
    logger.remove()
    logger.add(lambda line: print(line, end="", file=sys.stderr), level="WARNING")
    return lmms_plugin


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lmms-eval's tables, bars and logs off the terminal; when it fails, its last words go with the error."""
    noise = io.StringIO()
    try:
        with redirect_stdout(noise), redirect_stderr(noise):
            yield
    except Exception as error:
        if words := noise.getvalue().strip()[-2000:]:
            error.add_note(f"last words before the error:\n{words}")
        raise
