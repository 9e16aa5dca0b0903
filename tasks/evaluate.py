"""evaluate: judge one model by one suite."""

from flytekit import task

from bard_core import artifacts, storage
from bard_core.config import EvaluationConfig, StorageConfig, TrackingConfig
from bard_core.evaluation import evaluate as judge
from bard_core.tracking import headline, log_evaluation, stage_run
from tasks.settings import CACHE_VERSION, Dataset, Evaluation, Model, artifact_uri, image

IGNORED = ("tracking", "parent_run")


@task(cache=True, cache_version=CACHE_VERSION, cache_ignore_input_vars=IGNORED, container_image=image("evaluate"), retries=2)
def evaluate(
    model: Model,
    source: Model,
    dataset: Dataset,
    evaluation: EvaluationConfig,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    parent_run: str,
) -> Evaluation:
    """Accuracy, tokens per forward and speed of ``model``; ``source`` is the baseline of speed."""
    key = artifacts.digest([model.key, source.key, dataset.key, evaluation])
    uri = artifact_uri(storage.root_uri(storage_config), "evaluate", model.name, key)
    with stage_run(tracking, parent_run, "evaluate", f"evaluate {model.name}", {"suite": evaluation.suite}) as run:
        result = judge(model, source, dataset, evaluation, uri)
        log_evaluation(tracking, run, result, result.suite_digest)
    numbers = ", ".join(f"{name} {value:.3f}" for name, value in headline(result).items())
    print(f"evaluated {model.name}: {numbers} ({result.seconds:.0f} s)", flush=True)
    return result
