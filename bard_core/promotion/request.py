"""What a re-evaluation is asked, as its YAML has it, and the results that there are."""

from collections.abc import Sequence
from pathlib import Path

from bard_core.config.file import read_yaml
from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.evaluation import EvaluationConfig, GateConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.config.strict import StrictModel
from bard_core.promotion.promote import score_of
from bard_core.store import artifacts, storage
from bard_core.store.refs import EvalResult
from bard_core.tracking import Version

LEFT_OUT = "bard.left_out"  # tag of a version: why it cannot be judged or gated; empty once it can


class Request(StrictModel):
    """A re-evaluation's inputs, as its YAML has them. ``version`` 0 means every version that lacks a score."""

    evaluation: EvaluationConfig
    gate: GateConfig = GateConfig()
    version: int = 0
    compute: ComputeConfig = ComputeConfig()
    storage_config: StorageConfig = StorageConfig()
    tracking: TrackingConfig = TrackingConfig()

    @classmethod
    def read(cls, path: Path) -> "Request":
        """Raises ValueError when it is not YAML, or naming each fault; OSError when there is no such file."""
        return cls.model_validate(read_yaml(path))


def results_of(request: Request, scope: Sequence[Version]) -> tuple[dict[int, EvalResult], dict[int, str]]:
    """By version: the results that can be read, and why those that were kept cannot be."""
    results, faults = {}, {}
    for version in scope:
        try:
            result = score_of(request.tracking, version, request.evaluation)
        except (artifacts.ArtifactError, storage.StorageError) as error:
            faults[version.number] = f"its evaluation cannot be read: {error}"
        else:
            if result is not None:
                results[version.number] = result
    return results, faults
