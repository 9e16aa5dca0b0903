"""What all tasks share: where the local cache lives, which image a stage runs in, and refs that carry their content hash."""

from collections.abc import Callable
from inspect import signature
from typing import Annotated, Any

from flytekit import HashMethod, dynamic, task
from flytekit.core import local_cache

from bard_core.config.sections import PodStage
from bard_core.store import storage
from bard_core.store.refs import CheckpointRef, DatasetRef, EvalResult, LooksRef, ModelRef, ReportRef
from tasks.resources import ENVIRONMENT, pod

# Flyte's local cache is in the user's home, shared by every checkout; its entries point at artifacts, so it belongs with them.
local_cache.CACHE_LOCATION = str(storage.home() / "flyte" / "cache")

CACHE_VERSION = "5"  # raise it when a stage's code changes what it computes
NOT_IN_KEYS = ("compute", "tracking", "parent_run", "claim")  # inputs that say where and for whom, not what

Dataset = Annotated[DatasetRef, HashMethod(lambda ref: ref.key)]
Checkpoint = Annotated[CheckpointRef, HashMethod(lambda ref: ref.key)]
Model = Annotated[ModelRef, HashMethod(lambda ref: ref.key)]
Evaluation = Annotated[EvalResult, HashMethod(lambda ref: ref.key)]
Looks = Annotated[LooksRef, HashMethod(lambda ref: ref.key)]
Report = Annotated[ReportRef, HashMethod(lambda ref: ref.key)]


def image(stage: str) -> str:
    """The stage's image, filled in by ``--image <stage>=repository@sha256:...`` when the project is packaged."""
    return f"{{{{.image.{stage}.fqn}}}}:{{{{.image.{stage}.version}}}}"


def stage_task(
    stage: str, size: PodStage, *, cached: bool = True, ignored: tuple[str, ...] = NOT_IN_KEYS, **special: Any
) -> Callable[[Callable[..., Any]], Any]:
    """``@task`` with what all tasks share: the stage's image, the pod's size, retries, and a cache.

    The cache is keyed by all inputs but those ``ignored``.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        left_out = tuple(name for name in ignored if name in signature(function).parameters)
        caching = {"cache": True, "cache_version": CACHE_VERSION, "cache_ignore_input_vars": left_out} if cached else {}
        return task(**{**_shared(stage, size), "retries": 2, **caching, **special})(function)

    return decorate


def stage_dynamic(stage: str) -> Callable[[Callable[..., Any]], Any]:
    """``@dynamic`` with the stage's image, in a small pod: it only says which tasks there are."""
    return dynamic(**_shared(stage, "control"), retries=2)


def _shared(stage: str, size: PodStage) -> dict[str, Any]:
    return {"container_image": image(stage), "environment": ENVIRONMENT, **pod(size)}


def artifact_uri(root: str, stage: str, name: str, key: str) -> str:
    """``<root>/artifacts/<stage>/<name>-<first 16 of the inputs' digest>``."""
    return storage.join(root, "artifacts", stage, f"{name}-{key[:16]}")
