"""prepare: raw shards in, one verified dataset artifact out.

    jobs        one a raw shard
    units       one a job, made by a pool of processes, each committed alone (``shard``): what is finished stays
    dataset     processor, units.json, index.arrow, card.json and card.html: written by the merge, which reads no sample

Killed anywhere, the next run makes the units that lack. The dataset's manifest depends on the shards' bytes and the
configuration, not on who made which unit when.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from bard_core.config.sections.data import DataConfig
from bard_core.config.sources import RawSource
from bard_core.data import index
from bard_core.data.card import build_card, page, summary
from bard_core.data.download import keep
from bard_core.data.index import Index
from bard_core.data.merge import Merged, merge
from bard_core.data.rows import count_rows
from bard_core.data.sampling import sample_limit
from bard_core.data.shard import ENTRIES, FACTS, Job, make_unit, read_file
from bard_core.data.sources import Shard, list_shards
from bard_core.data.tokenize import load_processor
from bard_core.data.units import lacking, units_uri
from bard_core.lab import world
from bard_core.processes import process_pool
from bard_core.store import artifacts, storage, workshop
from bard_core.store.refs import DatasetRef, UnitRef, UnitsRef

log = logging.getLogger(__name__)
BYTES_PER_PROCESS = 64 * 2**20  # raw bytes below which another process costs more to start than it saves


class PrepareError(Exception):
    """The data cannot be prepared: says what, where and how to fix it."""


def prepare(
    config: DataConfig,
    output_uri: str,
    *,
    processes: int | None = None,
    made: Sequence[UnitsRef] = (),
    benchmarks: Mapping[str, Any] | None = None,
) -> DatasetRef:
    """Prepare a dataset and commit it to ``output_uri`` (a local folder or s3:// prefix), its units beside it.

    Args:
        processes: how many work on shards; None: one a core, fewer for little data.
        made: the units of all shards, where several tasks made them before.
        benchmarks: name -> looks of the images that benchmarks ask about, which are kept out of training.

    Raises:
        PrepareError: too many rows were refused, or no training sample is left.
        SourceError: a source cannot be read.
    """
    with workshop.scratch("prepare") as scratch:
        jobs = plan_jobs(config, output_uri, scratch)
        units: Sequence[UnitRef] = make_units(jobs, processes) if not made else _in_order(made, jobs)
        return _assemble(config, output_uri, jobs, units, scratch, benchmarks)


def standing(uri: str) -> DatasetRef | None:
    """The whole dataset at ``uri``, its units beside it; None where there is none. What is damaged of it is set aside.

    Units are hashed where they are local; remote ones by who fetches them.
    """
    if (manifest := artifacts.standing(uri)) is None:
        return None
    folder = units_uri(uri)
    if storage.is_local(uri):
        for unit in Index.open(storage.local_path(uri)).units:
            artifacts.standing(storage.join(folder, unit.name))
    if lost := lacking(uri):
        log.warning("%s: %s of its units are not there, and are made anew (%s)", uri, len(lost), ", ".join(lost[:3]))
        return None
    return DatasetRef(uri=uri, manifest_sha256=manifest.digest, **manifest.metadata)


def _in_order(made: Sequence[UnitsRef], jobs: Sequence[Job]) -> list[UnitRef]:
    """Units of several groups in the order of the shards; those that are gone since are made again.

    Raises:
        PrepareError: some lack, because the shards changed since.
    """
    placed = {group.group + place * group.of: unit for group in made for place, unit in enumerate(group.units)}
    if sorted(placed) != list(range(len(jobs))):
        raise PrepareError(f"units of {len(placed)} shards were made, but there are {len(jobs)} now: prepare again")
    there = set(storage.list_folders(jobs[0].units_uri)) if jobs else set()
    return [placed[n] if placed[n].name in there else make_unit(job) for n, job in enumerate(jobs)]


def plan_jobs(config: DataConfig, output_uri: str, scratch: Path) -> list[Job]:
    """One job a shard, in the order of sources and names. Writes the processor, and the lab's shards, to ``scratch``.

    Sweeps first what killed runs left in the home's scratch folders.

    Raises:
        PrepareError: two sources share a name. SourceError: a source cannot be listed.
    """
    workshop.sweep_scratch()
    processor = scratch / "processor"
    load_processor(config).save_pretrained(processor)
    digest = artifacts.digest([[entry.path, entry.sha256] for entry in artifacts.file_entries(processor)])
    jobs = []
    for source in _sources(config, scratch / "raw"):
        shards = list_shards(source)
        limit = None
        if source.max_samples is not None:
            rows = [count_rows(keep(shard), shard.format) for shard in shards]
            limit = sample_limit(config.seed, shards, rows, source.max_samples)
        jobs += [
            Job(
                shard=shard,
                units_uri=units_uri(output_uri),
                processor=str(processor),
                processor_digest=digest,
                max_tokens=config.max_tokens,
                max_answer_tokens=config.max_answer_tokens,
                learned=config.learned,
                seed=config.seed,
                system_prompt=config.system_prompt,
                drawn=limit,
            )
            for shard in shards
        ]
    return jobs


def _sources(config: DataConfig, raw_folder: Path) -> list[RawSource]:
    sources = list(config.sources)
    if config.lab is not None:
        sources += [source for sides in world.write_raw(config.lab, raw_folder).values() for source in sides]
    names = [source.name for source in sources]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise PrepareError(f"data.sources: name {', '.join(repeated)} is used twice; sample ids need distinct names")
    return sources


def make_units(jobs: Sequence[Job], processes: int | None = None) -> list[UnitRef]:
    """The unit of each job, in the jobs' order, under a bar that shows bytes and the time left.

    Raises:
        PrepareError: the processes were killed again and again. SourceError: see ``shard.make_unit``.
    """
    from bard_core.progress import Bar

    total = sum(job.shard.size for job in jobs)
    processes = processes or min(len(os.sched_getaffinity(0)), 1 + total // BYTES_PER_PROCESS)
    made: dict[int, UnitRef] = {}
    with Bar(total=total, desc="prepare", unit="B", unit_scale=True) as bar:
        for number, unit in _all(jobs, min(processes, len(jobs))):
            made[number] = unit
            bar.set_postfix_str(f"{len(made)} of {len(jobs)} shards", refresh=False)
            bar.update(jobs[number].shard.size)
    return [made[number] for number in range(len(jobs))]


def _all(jobs: Sequence[Job], processes: int) -> Iterator[tuple[int, UnitRef]]:
    """Units as they are finished. A process that is killed takes its pool along: one of half the size goes on with what lacks."""
    if processes <= 1:
        for number, job in enumerate(jobs):
            yield number, make_unit(job)
        return
    left = dict(enumerate(jobs))
    while True:
        with process_pool(processes, "bard_core.data.shard") as pool:
            try:
                futures = {pool.submit(make_unit, job): number for number, job in left.items()}
                for future in as_completed(futures):
                    unit = future.result()
                    yield futures[future], unit
                    del left[futures[future]]
                return
            except BrokenProcessPool as error:
                if processes == 1:
                    shard = next(iter(left.values())).shard.uri
                    raise PrepareError(
                        f"{shard}: a process was killed over it with no other beside it: out of memory? "
                        "Give it more memory, or take that file away; finished units stay"
                    ) from error
                processes = processes // 2
                log.warning("a process was killed, out of memory? Going on with %s, finished units stay", processes)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _assemble(
    config: DataConfig,
    output_uri: str,
    jobs: Sequence[Job],
    units: Sequence[UnitRef],
    scratch: Path,
    benchmarks: Mapping[str, Any] | None = None,
) -> DatasetRef:
    """Merge the units of all jobs into the dataset.

    Raises:
        PrepareError: too many rows were refused, or no training sample is left.
    """
    staging = scratch / "dataset"
    staging.mkdir()
    (scratch / "processor").rename(staging / "processor")
    shards = [job.shard for job in jobs]
    facts, merged = _merged(config, shards, units, units_uri(output_uri), benchmarks)
    index.write(staging / index.FILE, merged.columns)
    (staging / index.UNITS_FILE).write_text(json.dumps([unit.model_dump() for unit in units], indent=1) + "\n", encoding="utf-8")
    card = build_card(shards, facts, merged)
    print(summary(card), file=sys.stderr)
    _check(card, config)
    (staging / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (staging / "card.html").write_text(page(card), encoding="utf-8")
    facts_of = {
        "num_train": card["samples"]["train"],
        "num_eval": card["samples"]["eval"],
        "epoch_samples": sum(source["places_in_an_epoch"] for source in card["sources"].values()),
        "system_prompt": config.system_prompt,
    }
    manifest = artifacts.commit_directory(
        staging, output_uri, kind="dataset", config_digest=artifacts.digest(_placeless(config)), metadata=facts_of
    )
    return DatasetRef(uri=output_uri, manifest_sha256=manifest.digest, **facts_of)


def _merged(
    config: DataConfig, shards: Sequence[Shard], units: Sequence[UnitRef], uri: str, benchmarks: Mapping[str, Any] | None
) -> tuple[list[dict[str, Any]], Merged]:
    """What each unit says of itself, and the merge of their entries."""
    import pyarrow as pa

    facts, entries = [], []
    for shard, unit in zip(shards, units, strict=True):
        place = storage.join(uri, unit.name)
        manifest = artifacts.read_manifest(place)
        if manifest.digest != unit.manifest_sha256:
            raise artifacts.ArtifactError(f"{place} was replaced while it was merged; prepare again")
        facts.append(json.loads(read_file(place, manifest, FACTS)))
        with pa.ipc.open_stream(read_file(place, manifest, ENTRIES)) as stream:
            entries.append((shard.source, stream.read_all()))
    return facts, merge(entries, seed=config.seed, eval_fraction=config.eval_fraction, benchmarks=benchmarks)


def _placeless(config: DataConfig) -> DataConfig:
    """The configuration without local folders: the same data in another folder is the same dataset."""
    hidden = {"root": ""}
    sources = [
        source.model_copy(update=hidden | ({"uri": "local"} if storage.is_local(source.uri) else {})) for source in config.sources
    ]
    return config.model_copy(update={"sources": tuple(sources)})


def _check(card: dict[str, Any], config: DataConfig) -> None:
    """Refuse a dataset of which too much was refused, or that cannot train."""
    for name, source in card["sources"].items():
        shares = {
            "rows": (sum(source["refused"].values()), source["rows"]),
            "shards": (len(source["damaged"]), source["shards"]),
        }
        for what, (lost, total) in shares.items():
            if lost > config.max_refused * total:
                raise PrepareError(
                    f"source {name!r}: {lost} of {total} {what} were refused: {source['refused'] or source['damaged']}. "
                    f"data.max_refused is {config.max_refused:.0%}: mend them (see quarantine.jsonl of its units), or raise it"
                )
    if card["samples"]["train"] == 0:
        raise PrepareError(
            f"no training sample is left; rows refused: {card['refused'] or 'none'}, left out: {card['left_out'] or 'none'}; "
            "check data.sources, data.eval_fraction and data.max_tokens"
        )
