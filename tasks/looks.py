"""looks: what the images of a suite's benchmarks look like, so that no training image is one of them."""

from bard_core.config.sections.storage import StorageConfig
from bard_core.evaluation.looks import looks_key, see_suite
from bard_core.store import places
from tasks.settings import Looks, stage_task


@stage_task("report", "prepare", code="evaluate")
def see_benchmarks(suite: str, storage_config: StorageConfig) -> Looks:
    """Look at every image that the suite asks about."""
    return see_suite(suite, places.looks_uri(storage_config, suite, looks_key(suite)))
