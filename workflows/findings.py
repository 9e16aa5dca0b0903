"""The claims of configs/findings, a task a piece: what ``make findings`` does on one machine, over a cluster's pods.

    pyflyte run --remote workflows/findings.py bard_findings --names '["progressive", "elastic"]'

Pieces of one row run at once. One that fails takes only those along that need it; a new run finds what is done.
"""

from functools import partial
from typing import Any

from flytekit import map_task, workflow

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.storage import StorageConfig
from tasks.finding import do_piece, levels_of, tell
from tasks.resources import pod
from tasks.settings import Report, stage_dynamic
from tasks.within import within


@stage_dynamic("report")
def try_claims(names: list[str], compute: ComputeConfig, storage_config: StorageConfig) -> Report:
    """Row after row; a row waits for the one before it."""
    done: list[Any] = []
    for row in levels_of(names):
        piece = map_task(partial(do_piece, names=names, after=done, storage_config=storage_config), min_success_ratio=1e-9)
        done = within(pod("evaluate", compute), piece)(piece=row)
    return within(pod("report", compute), tell)(names=names, after=done, storage_config=storage_config)


@workflow
def bard_findings(
    names: list[str], compute: ComputeConfig = ComputeConfig(), storage_config: StorageConfig = StorageConfig()
) -> Report:
    """``names``: files of configs/findings; none: all. Returns the report: report.md, pictures, and results/ in its folder."""
    return try_claims(names=names, compute=compute, storage_config=storage_config)
