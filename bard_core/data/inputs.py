"""What the pipeline starts from, as it is now: raw shards, a processor, models. Part of the key of what is made of them.

A path says where, not what. So a folder stands for the sha256 of its files, an S3 prefix for their ETags, a hub id for the commit
that its revision is at the moment; changed data at an old path is then another key, and the commit is what gets read.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from bard_core.config.references import REGISTERED, hub_id
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.storage import TrackingConfig
from bard_core.config.sources import RawSource
from bard_core.config.strict import StrictModel
from bard_core.data.sources import FORMATS, base_of
from bard_core.store import artifacts, storage
from bard_core.store.refs import ModelRef

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB = "hf://datasets/"


class InputError(Exception):
    """What a configuration starts from is not to be found: says which and what to do."""


class Contents(StrictModel):
    """What is at a place: a digest of all of it, which for a hub repository is its commit's."""

    digest: str
    commit: str | None = None


class FoundModel(StrictModel):
    """A model that a configuration names, as it is now; ``ref`` where Bard wrote it and it can be used as it stands."""

    reference: str
    place: str
    contents: Contents
    ref: ModelRef | None = None


class RawInputs(StrictModel):
    """What a dataset is prepared from, source by source, and the processor that is not built in code."""

    sources: dict[str, Contents]
    processor: Contents | None = None


def raw_inputs(config: DataConfig) -> RawInputs:
    """Look at everything that ``prepare`` would read.

    Raises:
        InputError: a place is empty, or cannot be reached.
    """
    return RawInputs(
        sources={source.name: _of_source(source) for source in config.sources},
        processor=None if config.processor == "lab" else contents(config.processor, config.processor_revision),
    )


def pinned(config: DataConfig, raw: RawInputs) -> DataConfig:
    """The configuration with the commits that were found, so that what was looked at is what is read."""
    sources = tuple(_at(source, raw.sources[source.name]) for source in config.sources)
    commit = raw.processor.commit if raw.processor else None
    return config.model_copy(update={"sources": sources, "processor_revision": commit})


def _of_source(source: RawSource) -> Contents:
    """What is below the folder that the source's pattern starts from, and below the root of the files that its rows name."""
    base = base_of(source.uri)[0]
    found, root = contents(base, source.revision), source.root
    if not root and source.schema_name == "messages" and base.endswith(FORMATS) and found.commit is None:
        root = base.rpartition("/")[0]  # one file, whose images and videos lie beside it
    if not root:
        return found
    return Contents(digest=artifacts.digest([found.digest, contents(root).digest]), commit=found.commit)


def _at(source: RawSource, found: Contents) -> RawSource:
    return source if found.commit is None else source.model_copy(update={"revision": found.commit})


def found_model(reference: str, tracking: TrackingConfig = TrackingConfig()) -> FoundModel:
    """Look at the model of a reference (see ``config.references``): an alias is the version that it is at the moment.

    Raises:
        InputError: as ``raw_inputs`` does, or there is no such version in MLflow.
    """
    if match := REGISTERED.fullmatch(reference):
        known = _registered(reference, tracking.model_copy(update={"registered_model": match[1]}), match[2] or match[3])
        return FoundModel(reference=reference, place=known.uri, contents=Contents(digest=known.key), ref=known)
    if "://" not in reference and not storage.local_path(reference).exists():
        name, revision = hub_id(reference)
        return FoundModel(reference=reference, place=name, contents=contents(name, revision))
    ref = written_model(reference) if storage.exists(storage.join(reference, artifacts.MANIFEST)) else None
    found = Contents(digest=ref.key) if ref is not None else contents(reference)
    return FoundModel(reference=reference, place=reference, contents=found, ref=ref)


def _registered(reference: str, tracking: TrackingConfig, wanted: str) -> ModelRef:
    from bard_core.tracking import versions

    known = versions(tracking)
    for version in known:
        if wanted in (*version.aliases, str(version.number)):
            return version.model
    shown = ", ".join(f"{version.number} ({', '.join([version.model.name, *version.aliases])})" for version in known)
    raise InputError(
        f"{reference}: no version {wanted!r} of {tracking.registered_model!r} in MLflow; there are: {shown or 'none'}"
    )


def in_role(ref: ModelRef, role: str) -> ModelRef:
    """A source, whatever else it may be, is the autoregressive model that the others are measured against."""
    return ref.model_copy(update={"stage": "source", "block_size": 1}) if role == "source" else ref


def written_model(place: str) -> ModelRef:
    """The ref of a model that Bard committed, by what its manifest and ``config.json`` say.

    Raises:
        ArtifactError: there is no manifest, it is torn, or it is no model's.
    """
    manifest = artifacts.read_manifest(place)
    if manifest.kind != "model":
        raise artifacts.ArtifactError(f"{place} is a {manifest.kind}, not a model")
    config = json.loads(storage.read_bytes(storage.join(place, "config.json")))
    block_size = int((config.get("bard") or {}).get("block_size", 1))
    return ModelRef(
        uri=place,
        manifest_sha256=manifest.digest,
        stage="source" if block_size == 1 else "pbm",
        block_size=block_size,
        parent_sha256=manifest.parent_digest,
    )


def contents(place: str, revision: str | None = None) -> Contents:
    """What is now at a folder, an fsspec prefix, or a hub id: ``owner/name``, or ``hf://datasets/owner/name[/folder]``."""
    if place.startswith(HUB):
        owner, name, *_ = place.removeprefix(HUB).split("/")
        name, _, pinned = name.partition("@")
        return _hub(f"{owner}/{name}", revision or pinned or None, "dataset")
    if storage.is_local(place) and not storage.local_path(place).exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place):
        return _hub(place, revision, "model")
    try:
        files = _local(storage.local_path(place)) if storage.is_local(place) else _remote(place)
    except Exception as error:  # every fsspec backend brings its own exceptions
        raise InputError(
            f"{place} cannot be listed ({type(error).__name__}: {error}); see that it is there and yours to read"
        ) from error
    if not files:
        raise InputError(f"{place}: nothing there; give a folder, an s3:// prefix or a hub id")
    return Contents(digest=artifacts.digest(files))


def _hub(repository: str, revision: str | None, kind: str) -> Contents:
    commit = _commit(repository, revision, kind)
    return Contents(digest=artifacts.digest([kind, repository, commit]), commit=commit)


def _commit(repository: str, revision: str | None, kind: str) -> str:
    """The commit that a revision is: the hub's word, or offline that of what was downloaded."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    try:
        if constants.HF_HUB_OFFLINE:
            return Path(snapshot_download(repository, repo_type=kind, revision=revision, local_files_only=True)).name
        return str(HfApi().repo_info(repository, repo_type=kind, revision=revision).sha)
    except Exception as error:  # the hub's own, its client's and the network's
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"{kind} {repository} at {revision or 'main'} cannot be resolved to a commit ({why}); "
            "check the name, set HF_TOKEN where it is gated, give the commit as its revision, "
            "or go on with what was downloaded: HF_HUB_OFFLINE=1"
        ) from error


def _local(base: Path) -> dict[str, list[Any]]:
    """Relative path -> [size, sha256] of every file of a folder, or of the file itself."""
    memory = _Memory(storage.home() / "cache" / "checksums.json")
    files = [base] if base.is_file() else sorted(path for path in _walk(base) if path.is_file())
    found = {(path.relative_to(base).as_posix() if path != base else path.name): memory.entry(path) for path in files}
    memory.save()
    return found


def _walk(base: Path) -> list[Path]:
    """All paths below a folder but hidden ones."""
    return [path for path in base.rglob("*") if not any(part.startswith(".") for part in path.relative_to(base).parts)]


def _remote(place: str) -> dict[str, list[Any]]:
    """Relative path -> [size, ETag] of every object; where a place has no ETags, the sha256."""
    found = {}
    for name, info in storage.file_facts(place).items():
        tag = next((str(info[key]).strip('"') for key in ("ETag", "etag", "md5Hash") if info.get(key)), None)
        found[name] = [int(info["size"] or 0), tag or storage.sha256(storage.join(place, name))]
    return found


class _Memory:
    """Checksums of local files that have not changed since, so that a terabyte is hashed once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known: dict[str, list[Any]] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # lost or damaged: all is hashed again
            self._known = {}
        self._new = False

    def entry(self, path: Path) -> list[Any]:
        facts = os.stat(path)
        stamp = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
        known = self._known.get(str(path.absolute()))
        if known is None or known[:-1] != stamp:
            self._known[str(path.absolute())] = known = [*stamp, _sha256(path)]
            self._new = True
        return [facts.st_size, known[-1]]

    def save(self) -> None:
        if self._new:
            storage.write_bytes(str(self._path), json.dumps(self._known).encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
