"""What all tasks share: where the local cache lives, which image a stage runs in, and refs that carry their content hash."""

from typing import Annotated

from flytekit import HashMethod
from flytekit.core import local_cache

from bard_core.store import storage
from bard_core.store.refs import CheckpointRef, DatasetRef, EvalResult, ModelRef, ReportRef

# Flyte's local cache is in the user's home, shared by every checkout; its entries point at artifacts, so it belongs with them.
local_cache.CACHE_LOCATION = str(storage.home() / "flyte" / "cache")

CACHE_VERSION = "3"  # raise it when a stage's code changes what it computes

Dataset = Annotated[DatasetRef, HashMethod(lambda ref: ref.key)]
Checkpoint = Annotated[CheckpointRef, HashMethod(lambda ref: ref.key)]
Model = Annotated[ModelRef, HashMethod(lambda ref: ref.key)]
Evaluation = Annotated[EvalResult, HashMethod(lambda ref: ref.key)]
Report = Annotated[ReportRef, HashMethod(lambda ref: ref.key)]


def image(stage: str) -> str:
    """The stage's image, filled in by ``--image <stage>=repository@sha256:...`` when the project is packaged."""
    return f"{{{{.image.{stage}.fqn}}}}:{{{{.image.{stage}.version}}}}"


def artifact_uri(root: str, stage: str, name: str, key: str) -> str:
    """``<root>/artifacts/<stage>/<name>-<first 16 of the inputs' digest>``."""
    return storage.join(root, "artifacts", stage, f"{name}-{key[:16]}")
