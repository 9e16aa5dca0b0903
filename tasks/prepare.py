"""prepare: raw shards to a tokenised dataset, in one task with all its cores, or spread over several and merged."""

import json

from flytekit import Deck

from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.data import card, inputs
from bard_core.data import prepare as preparing
from bard_core.data.benchmarks import read_looks
from bard_core.data.inputs import RawInputs
from bard_core.store import artifacts, claims, places, times, workshop
from bard_core.store.refs import LooksRef, UnitsRef
from bard_core.tracking import stage_run
from tasks.settings import Dataset, stage_task


@stage_task("prepare", "control")
def raw_inputs(data: DataConfig) -> RawInputs:
    """What the raw data is now. Not cached: changed data at an old path is what it is to notice."""
    return inputs.raw_inputs(data)


@stage_task("prepare", "prepare", code="prepare")
def prepare_units(group: int, of: int, data: DataConfig, raw: RawInputs, storage_config: StorageConfig) -> UnitsRef:
    """The units of every ``of``-th raw shard, from shard ``group`` on."""
    uri = places.artifact_uri(storage_config, "prepare", "dataset", "prepare", data, raw)
    with workshop.scratch("prepare") as scratch:
        jobs = preparing.plan_jobs(inputs.pinned(data, raw), uri, scratch)
        return UnitsRef(group=group, of=of, units=tuple(preparing.make_units(jobs[group::of])))


@stage_task("prepare", "prepare", code="prepare", enable_deck=True)
def prepare_dataset(
    data: DataConfig,
    raw: RawInputs,
    looks: list[LooksRef],
    units: list[UnitsRef],
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    parent_run: str,
) -> Dataset:
    """The dataset, once for all stages that name it, of the ``units`` that were made; without any, they are made here.

    ``looks``: of benchmarks' images, kept out of training. The data card is the task's Flyte Deck.
    """
    uri = places.dataset_uri(storage_config, data, raw, looks)
    with (
        times.measured("prepare", uri),
        claims.exclusive(f"{uri}.claim"),
        stage_run(tracking, parent_run, "prepare", "prepare", {"max_tokens": data.max_tokens}) as run,
    ):
        if (ref := preparing.standing(uri)) is None:
            ref = preparing.prepare(inputs.pinned(data, raw), uri, made=units, benchmarks=read_looks(looks))
        folder = artifacts.fetch(ref, part="card")
        numbers = card.metrics(json.loads((folder / "card.json").read_text(encoding="utf-8")))
        run.log_metrics(numbers)
        run.log_file(folder / "card.html")
        run.log_dataset("prepared", ref.manifest_sha256, ref.uri, json.dumps(numbers))
    Deck("Data card", (folder / "card.html").read_text(encoding="utf-8"))
    return ref
