"""One model on one benchmark: answers (kept, and spread over nodes and their GPUs), then lmms-eval's score.

Nodes and processes share nothing but the answer store: each answers every n-th sample and ends; scoring then finds all answers
there, so the scores are those of one process. What a dead one left unanswered, scoring answers itself.

    python -m bard_core.evaluation.benchmark <job.json> <process> <processes>     # what such a process runs
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import Field

from bard_core.config.sections.evaluation import DecodingConfig, EvaluationConfig
from bard_core.config.strict import StrictModel
from bard_core.config.versions import VERSIONS
from bard_core.evaluation.answers import AnswerStore
from bard_core.evaluation.compare import standard_error
from bard_core.evaluation.suites import Benchmark, benchmark_digest, prepare_task
from bard_core.store import artifacts, storage, workshop
from bard_core.store.refs import BenchmarkRef, BenchmarkScore, DatasetRef, ModelRef

LIBRARIES = ("lmms_eval", "torch", "transformers", "datasets")


class Share(StrictModel):
    """The samples ``index``, ``index + of``, ``index + 2 of``, ... of a benchmark."""

    benchmark: Benchmark
    index: int = Field(ge=0)
    of: int = Field(ge=1)


@dataclass(frozen=True)
class Job:
    """What a process needs to answer a benchmark: everything but which share is its own."""

    folder: str
    mode: str
    dataset: str
    benchmark: Benchmark
    decoding: DecodingConfig
    batch_size: int
    answers_uri: str


def answers_key(model: ModelRef, benchmark: Benchmark, decoding: DecodingConfig) -> str:
    """The name of an answer store, in which answers are found by their prompts' digests.

    New weights, other decoding, other limits of answers or images, and new code are another store.
    """
    limits = benchmark.model_dump(include={"max_new_tokens", "min_pixels", "max_pixels", "video_frames"})
    return artifacts.digest([VERSIONS["answers"], model.key, _mode(model), limits, decoding, _place()])


def judged_key(model: ModelRef, dataset: DatasetRef, benchmark: Benchmark, config: EvaluationConfig) -> str:
    """What a benchmark's score depends on: the answers, and how they are scored."""
    answers = answers_key(model, benchmark, config.decoding)
    return artifacts.digest([VERSIONS["evaluate"], answers, benchmark_digest(benchmark, dataset.key), config.batch_size])


def judge(
    model: ModelRef,
    dataset: DatasetRef,
    benchmark: Benchmark,
    config: EvaluationConfig,
    output_uri: str,
    answers_uri: str,
    processes: int | None = None,
) -> BenchmarkRef:
    """Score ``model`` on ``benchmark`` and commit results, samples and lmms-eval's own files to ``output_uri``.

    What is already there for the same weights, benchmark and settings is returned as it is.

    Args:
        answers_uri: folder of all answer stores.
        processes: data-parallel processes; None: one a GPU.

    Raises:
        SuiteError, ArtifactError, RuntimeError: see ``suites``, ``artifacts.fetch``, ``lmms_score.score``.
    """
    if (done := _already_judged(output_uri, model, dataset, benchmark, config)) is not None:
        return done
    job = _job(model, dataset, benchmark, config, answers_uri)
    count = _gpus() if processes is None else processes
    if count > 1:
        _answer_in_processes(job, Share(benchmark=benchmark, index=0, of=1), count)
    with workshop.scratch("benchmark") as scratch:
        out = scratch / "out"
        chat, scores = _run(job, scratch, out)
        records, limit = scores.records, benchmark.max_new_tokens or chat.max_new_tokens
        values = [record["score"] for record in records if record["score"] is not None]
        score = BenchmarkScore(
            name=benchmark.name,
            task=benchmark.task,
            task_version=scores.task_version,
            prompt=benchmark.prompt,
            metrics=scores.metrics,
            accuracy=sum(scores.metrics[name] for name in benchmark.metrics) / sum(benchmark.metrics.values()),
            accuracy_stderr=standard_error(values),
            num_samples=len(records),
            crashed=sum(record["error"] is not None for record in records),
            real_tokens=sum(record["real_tokens"] for record in records),
            forwards=sum(record["forwards"] for record in records),
            dataset_fingerprint=scores.fingerprint,
        )
        body = {
            "model_sha256": model.key,
            "dataset_sha256": dataset.key if benchmark.own else None,
            "benchmark": benchmark.model_dump(),
            "benchmark_digest": benchmark_digest(benchmark, dataset.key),
            "prompt_text": scores.prompt_text,
            "system_prompt": chat.system_prompt,
            "decoding": {"mode": job.mode, **config.decoding.model_dump(), "max_new_tokens": limit},
            "batch_size": config.batch_size,
            "libraries": {name: version(name) for name in LIBRARIES},
            "device": str(chat.model.device),
            "dtype": str(chat.model.dtype).removeprefix("torch."),
            "score": score.model_dump(),
        }
        (out / "results.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        (out / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        key = judged_key(model, dataset, benchmark, config)
        manifest = artifacts.commit_directory(out, output_uri, kind="benchmark", config_digest=key, parent_digest=model.key)
    return BenchmarkRef(uri=output_uri, manifest_sha256=manifest.digest, model_sha256=model.key, score=score)


def answer(
    model: ModelRef, dataset: DatasetRef, share: Share, config: EvaluationConfig, output_uri: str, answers_uri: str
) -> None:
    """Answer a share of a benchmark, a process a GPU, so that ``judge`` finds the answers; nothing where it has judged already.

    Args, Raises: see ``judge``; a process that fails is told of, not raised.
    """
    if _already_judged(output_uri, model, dataset, share.benchmark, config) is not None:
        return
    _answer_in_processes(_job(model, dataset, share.benchmark, config, answers_uri), share, max(1, _gpus()))


def _job(model: ModelRef, dataset: DatasetRef, benchmark: Benchmark, config: EvaluationConfig, answers_uri: str) -> Job:
    store = storage.join(answers_uri, answers_key(model, benchmark, config.decoding))
    folder = artifacts.fetch(model)
    if benchmark.own:
        artifacts.fetch(dataset)  # it is the one that the ref was made for
    return Job(str(folder), _mode(model), dataset.uri, benchmark, config.decoding, config.batch_size, store)


def _already_judged(
    uri: str, model: ModelRef, dataset: DatasetRef, benchmark: Benchmark, config: EvaluationConfig
) -> BenchmarkRef | None:
    try:
        manifest = artifacts.verify(uri)
    except artifacts.ArtifactError:
        return None
    if manifest.config_digest != judged_key(model, dataset, benchmark, config):
        return None
    body = json.loads(storage.read_bytes(storage.join(uri, "results.json")))
    score = BenchmarkScore.model_validate(body["score"])
    return BenchmarkRef(uri=uri, manifest_sha256=manifest.digest, model_sha256=model.key, score=score)


def _mode(model: ModelRef) -> str:
    """The source is decoded autoregressively, every other model in blocks."""
    return "ar" if model.stage == "source" else "block"


def _place() -> str:
    """What besides the settings may change an answer: the kind of device, and with it the precision."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def _run(job: Job, scratch: Path, out: Path, shard: tuple[int, int] | None = None) -> Any:
    """(chat, scores) of the whole benchmark; a shard ends with ``ShardAnsweredError``."""
    plugin, scoring = lmms()
    with quiet():
        chat = plugin.BardChat(job.folder, mode=job.mode, batch_size=job.batch_size, **job.decoding.model_dump())
        chat.store, chat.shard = AnswerStore(job.answers_uri), shard
        task = scoring.load_task(job.benchmark, prepare_task(job.benchmark, job.dataset, scratch))
        return chat, scoring.score(chat, job.benchmark, task, out)


def _answer_in_processes(job: Job, share: Share, count: int) -> None:
    """Let ``count`` processes divide a share, a GPU each where there are GPUs. A failure is told and left to scoring."""
    with workshop.scratch("answer") as scratch:
        path = scratch / "job.json"
        fields = {**vars(job), "benchmark": job.benchmark.model_dump(), "decoding": job.decoding.model_dump()}
        path.write_text(json.dumps(fields), encoding="utf-8")
        visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(_gpus())))).split(",")
        workers = []
        for index in range(count):
            gpu = {"CUDA_VISIBLE_DEVICES": visible[index % len(visible)]} if _gpus() else {}
            mine, of = share.index + share.of * index, share.of * count
            command = [sys.executable, "-m", __spec__.name, str(path), str(mine), str(of)]
            workers.append(subprocess.Popen(command, env={**os.environ, **gpu}))
        codes = [worker.wait() for worker in workers]
        if any(codes):
            print(f"{job.benchmark.name}: answering processes ended with {codes}; one process answers the rest", file=sys.stderr)


def answer_share(path: Path, index: int, count: int) -> None:
    """The body of an answering process."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["benchmark"] = Benchmark.model_validate(fields["benchmark"])
    fields["decoding"] = DecodingConfig.model_validate(fields["decoding"])
    with workshop.scratch("share") as scratch:
        try:
            _run(Job(**fields), scratch, scratch / "out", shard=(index, count))
        except lmms()[0].ShardAnsweredError:
            return


@cache
def lmms() -> tuple[Any, Any]:
    """(lmms_plugin, lmms_score). Importing lmms-eval takes seconds and ties loguru to the standard output; that is undone."""
    try:
        with quiet():
            from loguru import logger

            from bard_core.evaluation import lmms_plugin, lmms_score
    except ImportError as error:
        raise RuntimeError(f"evaluation needs lmms-eval: pip install 'bard[evaluate]' ({error})") from error
    logger.remove()
    logger.add(lambda line: print(line, end="", file=sys.stderr), level="WARNING")
    return lmms_plugin, lmms_score


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lmms-eval's tables, bars and logs off the terminal; when it fails, its last words go with the error."""
    from contextlib import redirect_stderr, redirect_stdout

    noise = StringIO()
    try:
        with redirect_stdout(noise), redirect_stderr(noise):
            yield
    except Exception as error:
        if words := noise.getvalue().strip()[-2000:]:
            error.add_note(f"last words before the error:\n{words}")
        raise


if __name__ == "__main__":
    answer_share(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
