"""One raw shard in, one committed unit out: the piece of work that is done alone, kept, and never done twice.

A unit's name ends in a key of everything that decides its bytes: the shard's sha256, what its source says of reading it, the
tokenizer, and this code's version. What it holds:

    rows.arrow        the samples (columns: ``rows_schema``), an uncompressed Arrow stream that ``datasets`` maps into memory
    entries.arrow     what the merge needs of each sample (columns: ``entries_schema``)
    unit.json         counts and refusals
    quarantine.jsonl  one line for every refused row: id, reason, detail
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from bard_core.config.versions import VERSIONS
from bard_core.data.card import example
from bard_core.data.conversation import with_system_turn
from bard_core.data.download import brought
from bard_core.data.media import Media
from bard_core.data.messages import Sample, convert
from bard_core.data.records import Writer, entries_schema, entry_of, row_of, rows_schema
from bard_core.data.refusal import RowRefused
from bard_core.data.rows import ROWS_PER_READ, ShardDamagedError, rows_of
from bard_core.data.sampling import rows_drawn
from bard_core.data.sources import Shard
from bard_core.data.tokenize import SampleTokenizer, Tokenized
from bard_core.data.units import ROWS
from bard_core.data.videos import VideoReader
from bard_core.diffusion.names import Learned
from bard_core.store import artifacts, storage, workshop
from bard_core.store.refs import UnitRef

ENTRIES, FACTS, QUARANTINE = "entries.arrow", "unit.json", "quarantine.jsonl"
# What of a source decides a unit's bytes; the rest decides which shards are read, or is the merge's.
READING = ("name", "schema_name", "columns", "place_images", "on_bad_part", "min_ratings", "compare")


@dataclass(frozen=True)
class Job:
    """One shard to prepare. ``drawn``: rows whose draw is at most this belong to the source's sample; None: all rows."""

    shard: Shard
    units_uri: str
    processor: str
    processor_digest: str
    max_tokens: int
    max_answer_tokens: int | None
    learned: Learned
    seed: int
    system_prompt: str | None = None
    drawn: float | None = None


def make_unit(job: Job) -> UnitRef:
    """The unit of a shard: the one that is there, or a new one.

    Raises:
        SourceError: the shard's bytes cannot be had. (Bytes that are no data make a unit without rows, which says so.)
    """
    with brought(job.shard) as path:
        sha256 = job.shard.sha256 or storage.sha256(str(path))
        media = Media(job.shard)
        name = f"{_file_name(job.shard)}-{_key(job, sha256, media.digest(path))[:16]}"
        uri = storage.join(job.units_uri, name)
        manifest = artifacts.standing(uri)
        if manifest is None:
            with workshop.scratch("unit") as scratch:
                staging = scratch / name
                staging.mkdir()
                facts = _write(job, path, media, sha256, staging)
                (staging / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
                manifest = artifacts.commit_directory(staging, uri, kind="unit", metadata={"rows": facts["kept"]})
    size = sum(entry.size for entry in manifest.files)
    return UnitRef(name=name, manifest_sha256=manifest.digest, rows=manifest.metadata["rows"], bytes=size)


def read_file(uri: str, manifest: artifacts.Manifest, name: str) -> bytes:
    """One file of an artifact, checked.

    Raises:
        ArtifactError: it was changed.
    """
    data = storage.read_bytes(storage.join(uri, name))
    wanted = next(entry.sha256 for entry in manifest.files if entry.path == name)
    if hashlib.sha256(data).hexdigest() != wanted:
        raise artifacts.ArtifactError(f"{uri}: {name} does not have its recorded sha256: it was changed; {artifacts.AGAIN}")
    return data


def _file_name(shard: Shard) -> str:
    return re.sub(r"[^\w.+-]+", "-", f"{shard.source.name}-{shard.name}")[-100:].strip("-")


def _key(job: Job, sha256: str, media: str) -> str:
    source = job.shard.source.model_dump()
    return artifacts.digest(
        {
            "code": VERSIONS["prepare"],
            "shard": [job.shard.name, sha256, media],
            "source": {name: source[name] for name in READING},
            "processor": job.processor_digest,
            "system_prompt": job.system_prompt,
            "limits": [job.max_tokens, job.max_answer_tokens],
            **({} if job.learned == "all" else {"learned": job.learned}),
            "drawn": [job.seed, job.drawn] if job.drawn is not None else None,
        }
    )


@lru_cache(maxsize=2)
def _tokenizer(folder: str, max_tokens: int, max_answer_tokens: int | None, learned: Learned) -> SampleTokenizer:
    from transformers import AutoProcessor

    read: Callable[[str], Any] = AutoProcessor.from_pretrained
    return SampleTokenizer(read(folder), max_tokens, max_answer_tokens, learned)


def _write(job: Job, path: Path, media: Media, sha256: str, staging: Path) -> dict[str, Any]:
    """Write the samples, their entries and the refusals; returns the unit's facts."""
    source = job.shard.source
    refused: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    damaged, examples = "", list[dict[str, Any]]()
    tokenizer = _tokenizer(job.processor, job.max_tokens, job.max_answer_tokens, job.learned)
    with (
        (staging / QUARANTINE).open("w", encoding="utf-8") as quarantine,
        Writer(staging / ROWS, rows_schema()) as rows,
        Writer(staging / ENTRIES, entries_schema(), 1024) as entries,
    ):
        try:
            for result in _results(job, path, media, tokenizer, counts):
                if isinstance(result, Refused):
                    refused[result.reason] += 1
                    quarantine.write(json.dumps(result.__dict__) + "\n")
                    continue
                rows.add(row_of(result), sum(map(len, result.sample.images)))
                entries.add(entry_of(result))
                if not examples:
                    examples.append(example(result.sample.messages, result.sample.images))
                counts["cut"] += result.was_cut
                dropped.update(result.sample.dropped)
        except ShardDamagedError as error:
            damaged = str(error)
    return {
        "source": source.name,
        "shard": job.shard.name,
        "sha256": sha256,
        "rows": counts["rows"],
        "kept": rows.count,
        "cut_at_a_turn": counts["cut"],
        "refused": dict(sorted(refused.items())),
        "dropped": dict(sorted(dropped.items())),
        "damaged": damaged,
        "examples": examples,
    }


@dataclass(frozen=True)
class Refused:
    """A refused row, as it stands in the quarantine file."""

    id: str
    reason: str
    detail: str


def _results(
    job: Job, path: Path, media: Media, tokenizer: SampleTokenizer, counts: "Counter[str]"
) -> Iterator["Tokenized | Refused"]:
    """Every row of the shard's sample, in order, as what became of it."""
    source = job.shard.source
    raw = rows_of(path, job.shard.format, source)
    numbered = ((number, row) for number, row in enumerate(raw))
    if job.drawn is not None:
        drawn = rows_drawn(job.seed, job.shard, job.drawn)
        numbered = ((number, row) for number, row in numbered if drawn(number))
    while batch := list(islice(numbered, ROWS_PER_READ)):
        counts["rows"] += len(batch)
        outcomes: list[Sample | Refused] = []
        for number, row in batch:
            name = f"{source.name}/{job.shard.name}/{number}"
            outcomes.append(_converted(name, row, job, media, tokenizer.see))
        tokenized = iter(tokenizer([sample for sample in outcomes if isinstance(sample, Sample)]))
        for outcome in outcomes:
            if isinstance(outcome, Refused):
                yield outcome
                continue
            result = next(tokenized)
            yield Refused(outcome.id, result.reason, _safe(result.detail)) if isinstance(result, RowRefused) else result


def _converted(name: str, row: dict[str, Any] | RowRefused, job: Job, media: Media, see: VideoReader) -> Sample | Refused:
    try:
        if isinstance(row, RowRefused):
            raise row
        sample = convert(row, job.shard.source, name, media.read, see)
        return replace(sample, messages=with_system_turn(sample.messages, job.system_prompt))
    except RowRefused as refusal:
        return Refused(name, refusal.reason, _safe(refusal.detail))
    except Exception as error:  # noqa: BLE001 - a column may hold anything; one strange row is no reason to lose the others
        return Refused(name, "malformed row", _safe(f"{type(error).__name__}: {error}"))


def _safe(detail: str) -> str:
    return detail[:300].encode("utf-8", "backslashreplace").decode()
