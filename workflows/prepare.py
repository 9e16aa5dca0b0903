"""Raw data to a dataset: one task, or as many as ``compute.prepare_tasks`` says and a merge; each is cached and retried alone."""

from functools import partial

from flytekit import map_task

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.store.refs import UnitsRef
from tasks.looks import see_benchmarks
from tasks.prepare import prepare_dataset, prepare_units, raw_inputs
from tasks.resources import pod
from tasks.settings import Dataset, stage_dynamic
from tasks.within import within


@stage_dynamic("prepare")
def prepare(
    data: DataConfig, compute: ComputeConfig, storage_config: StorageConfig, tracking: TrackingConfig, parent_run: str
) -> Dataset:
    """The dataset that ``data`` describes."""
    size = pod("prepare", compute)
    looks = [within(size, see_benchmarks)(suite=suite, storage_config=storage_config) for suite in data.suites]
    raw = raw_inputs(data=data)
    units: list[UnitsRef] = []
    if compute.prepare_tasks > 1:
        count = compute.prepare_tasks
        spread = map_task(partial(prepare_units, of=count, data=data, raw=raw, storage_config=storage_config))
        units = within(size, spread)(group=list(range(count)))
    return within(size, prepare_dataset)(
        data=data, raw=raw, looks=looks, units=units, storage_config=storage_config, tracking=tracking, parent_run=parent_run
    )
