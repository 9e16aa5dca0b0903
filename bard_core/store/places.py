"""Where every stage keeps what it makes: ``<root>/artifacts/<folder>/<name>-<16 digits>``, the digits of all that decides it.

The tasks that make a thing and the forecast that looks for it ask here.
"""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.config.sections.storage import StorageConfig
from bard_core.config.versions import VERSIONS, Code
from bard_core.store import artifacts, storage
from bard_core.store.refs import CheckpointRef, DatasetRef, LooksRef, ModelRef, Ref


def artifact_uri(storage_config: StorageConfig, folder: str, name: str, code: Code, *inputs: Any) -> str:
    """A place named by the stage's version and all inputs that decide what is in it."""
    key = artifacts.digest([code, VERSIONS[code], *inputs])
    return storage.join(storage.root_uri(storage_config), "artifacts", folder, f"{name}-{key[:16]}")


def dataset_uri(at: StorageConfig, data: DataConfig, raw: Any, looks: Sequence[LooksRef]) -> str:
    """Of the dataset that ``data`` describes, where its raw data is ``raw`` now."""
    return artifact_uri(at, "prepare", "dataset", "prepare", data, raw, [ref.key for ref in looks])


def looks_uri(at: StorageConfig, suite: str, key: str) -> str:
    return artifact_uri(at, "looks", PurePath(suite).stem, "evaluate", key)  # a suite's name, or its file's


def resolved_uri(at: StorageConfig, role: str, contents: Any, dataset: DatasetRef) -> str:
    """Of a model from elsewhere, with the ``contents`` that it has now, adopted as source, parent, student or teacher."""
    return artifact_uri(at, "models", role, "resolve", contents, dataset.key)


def model_uri(at: StorageConfig, checkpoint: CheckpointRef, clean_attention: str) -> str:
    """Of the model folder that a checkpoint becomes."""
    return artifact_uri(at, "models", checkpoint.name, "consolidate", checkpoint.key, clean_attention)


def benchmark_uri(at: StorageConfig, model: ModelRef, benchmark: str, key: str) -> str:
    """Of a model's score on one benchmark; ``key``: ``benchmark.judged_key``."""
    return artifact_uri(at, "benchmarks", f"{model.name}-{benchmark}", "evaluate", key)


def evaluation_uri(
    at: StorageConfig,
    model: ModelRef,
    source: ModelRef,
    dataset: DatasetRef,
    evaluation: EvaluationConfig,
    judged: Sequence[Ref],
) -> str:
    """Of a model's judgement by the benchmarks that gave a score; ``source`` is the baseline of speed."""
    decides = (model.key, source.key, dataset.key, evaluation, [ref.key for ref in judged])
    return artifact_uri(at, "evaluate", model.name, "evaluate", *decides)


def report_uri(at: StorageConfig, name: str, dataset: DatasetRef, results: Sequence[Ref], configuration: Any) -> str:
    """Of the report on all results; it shows the configuration that led to them."""
    return artifact_uri(at, "report", name, "report", dataset.key, [result.key for result in results], configuration)
