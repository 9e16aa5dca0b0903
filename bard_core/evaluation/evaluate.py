"""evaluate: one model, one suite, one result: accuracy and tokens per forward through lmms-eval, then speed against AR."""

import io
import json
import math
import shutil
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bard_core import artifacts, storage
from bard_core.artifacts import DatasetRef, EvalResult, ModelRef
from bard_core.config import EvaluationConfig
from bard_core.evaluation.speed import Speed, measure
from bard_core.evaluation.suites import prepare_suite
from bard_core.models import load


def evaluate(model: ModelRef, source: ModelRef, dataset: DatasetRef, config: EvaluationConfig, output_uri: str) -> EvalResult:
    """Judge ``model`` and commit ``results.json`` and ``samples.jsonl`` to ``output_uri``.

    The source is decoded autoregressively, every other model in blocks. ``source`` is the baseline of speed, decoded in turn
    with the model in the same run.

    Raises:
        SuiteError, ArtifactError, RuntimeError: see ``prepare_suite``, ``artifacts.fetch``, ``lmms_plugin.score``.
    """
    started = time.perf_counter()
    data, folder = artifacts.fetch(dataset), artifacts.fetch(model)
    workshop = storage.home() / "staging"
    workshop.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="evaluate-", dir=workshop) as scratch:
        suite = prepare_suite(config.suite, data, dataset.key, Path(scratch))
        metrics, records, speed, tpf = _run(folder, artifacts.fetch(source), model, suite.task_folder, suite.task, config)
        accuracy, samples = metrics[suite.metric], len(records)
        stderr = math.sqrt(accuracy * (1 - accuracy) / samples)
        body = {
            "model": model.name,
            "model_sha256": model.key,
            "suite": suite.name,
            "suite_digest": suite.digest,
            "lmms_eval": version("lmms_eval"),
            "decoding": config.decoding.model_dump(),
            "prompt_variant": "default",
            "metrics": metrics,
            "accuracy": accuracy,
            "accuracy_stderr": stderr,
            "num_samples": samples,
            "tokens_per_forward": tpf,
            "speed": asdict(speed),
        }
        out = Path(scratch) / "out"
        out.mkdir()
        (out / "results.json").write_text(json.dumps(body, indent=2) + "\n")
        (out / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        manifest = artifacts.commit_directory(
            out, output_uri, kind="evaluation", config_digest=artifacts.digest(config), parent_digest=model.key
        )
        shutil.rmtree(out, ignore_errors=True)
    return EvalResult(
        uri=output_uri,
        manifest_sha256=manifest.digest,
        model=model,
        suite=suite.name,
        suite_digest=suite.digest,
        accuracy=accuracy,
        accuracy_stderr=stderr,
        num_samples=samples,
        tokens_per_forward=tpf,
        tokens_per_s=speed.tokens_per_s,
        ar_tokens_per_s=speed.ar_tokens_per_s,
        speedup=speed.speedup,
        seconds=time.perf_counter() - started,
    )


def _run(
    folder: Path, source_folder: Path, ref: ModelRef, task_folder: Path, task: str, config: EvaluationConfig
) -> tuple[dict[str, float], list[dict[str, Any]], Speed, float]:
    """Score through lmms-eval, then time the first prompts of the suite one by one."""
    noise = io.StringIO()
    try:
        with redirect_stdout(noise):  # lmms-eval prints tables of its own
            from bard_core.evaluation.lmms_plugin import BardChat, first_prompts, score
    except ImportError as error:
        raise RuntimeError(f"evaluation needs lmms-eval: pip install 'bard[eval]' ({error})") from error
    decoding = config.decoding
    options: dict[str, Any] = {
        "batch_size": config.batch_size,
        "strategy": decoding.strategy,
        "confidence_threshold": decoding.confidence_threshold,
        "denoising_steps": decoding.denoising_steps,
        "max_new_tokens": decoding.max_new_tokens,
    }
    mode = "ar" if ref.stage == "source" else "block"
    chat = BardChat(str(folder), mode=mode, model=load(folder), **options)
    with redirect_stdout(noise), redirect_stderr(noise):
        metrics, records = score(chat, task_folder, task, config.max_samples)
    tpf = sum(record["real_tokens"] for record in records) / max(1, sum(record["forwards"] for record in records))
    baseline = chat if mode == "ar" else BardChat(str(source_folder), mode="ar", model=load(source_folder), **options)
    with redirect_stdout(noise), redirect_stderr(noise):
        prompts = first_prompts(chat, task_folder, task, config.speed_samples + 1)
    speed = measure(prompts, chat.decode, baseline.decode)
    return metrics, records, speed, tpf
