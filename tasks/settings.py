"""What all tasks share: the local cache, which image a stage runs in, and refs that carry their content hash."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Annotated, Any

from flytekit import FlyteContextManager, HashMethod, dynamic, task

from bard_core import known_warnings
from bard_core.config.sections.compute import PodStage
from bard_core.config.versions import VERSIONS, Code
from bard_core.preflight import PreflightError
from bard_core.store import storage
from bard_core.store.refs import CheckpointRef, DatasetRef, EvalResult, LooksRef, ModelRef, ReportRef
from bard_core.tracking import TrackingError
from tasks import cache, stopping
from tasks.resources import ENVIRONMENT, pod
from tasks.within import declared

known_warnings.hush()
cache.use()
stopping.listen()

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


def stage_task(stage: str, size: PodStage, *, code: Code | None = None, **special: Any) -> Callable[[Callable[..., Any]], Any]:
    """``@task`` with what all tasks share: the stage's image, the pod's size, retries, and a cache.

    The cache is keyed by the version of ``code`` and by all inputs but :data:`NOT_IN_KEYS`; None: not cached.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        caching: dict[str, Any] = {}
        if code is not None:
            left_out = tuple(name for name in NOT_IN_KEYS if name in signature(function).parameters)
            caching = {"cache": True, "cache_version": str(VERSIONS[code]), "cache_ignore_input_vars": left_out}

        @wraps(function)
        def body(*args: Any, **kwargs: Any) -> Any:
            with stopping.stage(function.__name__.replace("_", " ")):
                try:
                    return function(*args, **kwargs)
                except (PreflightError, TrackingError, storage.StorageError) as error:
                    if not runs_here():
                        raise
                    raise SystemExit(f"refused: {error}") from error  # one line, without the traceback that pyflyte prints

        return task(**{**_shared(stage, size), "retries": 2, **caching, **special})(body)

    return decorate


def stage_dynamic(stage: str) -> Callable[[Callable[..., Any]], Any]:
    """``@dynamic`` with the stage's image, in a small pod: it only says which tasks there are."""
    return dynamic(**_shared(stage, "control"), retries=2)


def _shared(stage: str, size: PodStage) -> dict[str, Any]:
    return {"container_image": image(stage), "environment": ENVIRONMENT, **declared(pod(size))}


def runs_here() -> bool:
    """Whether ``pyflyte run`` runs the workflow in this process, and not a cluster one of its tasks."""
    state = FlyteContextManager.current_context().execution_state
    return state is not None and state.is_local_execution()
