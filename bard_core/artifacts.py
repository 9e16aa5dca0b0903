"""What travels between tasks: refs to directories that cannot lie.

A directory is an artifact once its ``manifest.json`` (every file's size and sha256) is there; the manifest is written last and
atomically, so no manifest means no artifact. A ref carries the manifest's own sha256: the same ref, the same bytes.
"""

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bard_core import storage

MANIFEST = "manifest.json"
Kind = Literal["dataset", "model", "checkpoint", "evaluation", "report"]


class ArtifactError(Exception):
    """An artifact is missing, torn or changed: says what, where and how to fix it."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Frozen):
    """One file: relative path, size in bytes, sha256."""

    path: str
    size: int
    sha256: str


class Manifest(_Frozen):
    """What an artifact consists of and where it came from."""

    kind: Kind
    files: tuple[FileEntry, ...]
    step: int | None = None
    config_digest: str | None = None
    parent_digest: str | None = None
    metadata: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """sha256 of the manifest's canonical JSON."""
        return digest(self)


class _Ref(_Frozen):
    uri: str
    manifest_sha256: str

    @property
    def key(self) -> str:
        """Content hash that a cache may use."""
        return self.manifest_sha256


class DatasetRef(_Ref):
    """A prepared dataset."""

    num_train: int
    num_eval: int


class CheckpointRef(_Ref):
    """The final checkpoint of a training run, with what consolidation needs to know of it."""

    stage: Literal["source", "pbm", "swd"]
    block_size: int
    step: int
    base_uri: str
    parent_sha256: str | None
    curve_uri: str


class ModelRef(_Ref):
    """A model in Hugging Face format. ``block_size`` is 1 for an autoregressive source."""

    stage: Literal["source", "pbm", "swd"]
    block_size: int
    parent_sha256: str | None
    mlflow_model_id: str | None = None
    curve_uri: str | None = None

    @property
    def name(self) -> str:
        """How people call it: ``source``, ``pbm-b8``, ``swd-b32``."""
        return "source" if self.stage == "source" else f"{self.stage}-b{self.block_size}"


class EvalResult(_Ref):
    """A model's judgement by one suite. Speeds are tokens a second at batch 1; ``speedup`` is over the source's AR decoding."""

    model: ModelRef
    suite: str
    suite_digest: str
    accuracy: float
    accuracy_stderr: float
    num_samples: int
    tokens_per_forward: float
    tokens_per_s: float
    ar_tokens_per_s: float
    speedup: float
    seconds: float


class ReportRef(_Ref):
    """A report; ``markdown`` is the uri of its report.md."""

    markdown: str


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of plain values and pydantic models.

    Raises:
        TypeError: a value has no canonical form (a path, a set, NaN, ...); says where it stands.
    """
    text = json.dumps(_canonical(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any, where: str) -> Any:
    if isinstance(value, BaseModel):
        return {name: _canonical(getattr(value, name), f"{where}.{name}") for name in type(value).model_fields}
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{where}: key {bad[0]!r} is not a string; use string keys")
        return {key: _canonical(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise TypeError(f"{where}: a {type(value).__name__} ({value!r}) has no canonical form; pass str, int, bool, None or a finite float")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entries(folder: Path) -> tuple[FileEntry, ...]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return tuple(
        FileEntry(path=p.relative_to(folder).as_posix(), size=p.stat().st_size, sha256=file_sha256(p)) for p in files
    )


def commit_directory(
    staging: Path,
    uri: str,
    *,
    kind: Kind,
    step: int | None = None,
    config_digest: str | None = None,
    parent_digest: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> Manifest:
    """Make the local folder ``staging`` the artifact ``uri``; the staging folder is used up when ``uri`` is local.

    An artifact with the same digest already there is kept; anything else there is replaced.

    Raises:
        ArtifactError: staging is empty or not a folder.
    """
    entries = _entries(staging)
    if not entries:
        raise ArtifactError(f"{staging} holds no files to commit as {kind} {uri}")
    manifest = Manifest(
        kind=kind,
        files=entries,
        step=step,
        config_digest=config_digest,
        parent_digest=parent_digest,
        metadata=metadata or {},
    )
    if _already_there(uri, manifest):
        if storage.is_local(uri):
            shutil.rmtree(staging)
        return manifest
    body = (manifest.model_dump_json(indent=2) + "\n").encode()
    if not storage.is_local(uri):
        storage.upload_tree(staging, uri)
        storage.write_bytes(storage.join(uri, MANIFEST), body)
        return manifest
    target = storage.local_path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    sibling = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    shutil.move(staging, sibling)
    storage.write_bytes(str(sibling / MANIFEST), body)
    if target.exists():
        doomed = target.with_name(f".{target.name}.old.{uuid.uuid4().hex}")
        os.replace(target, doomed)
        os.replace(sibling, target)
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        os.replace(sibling, target)
    return manifest


def _already_there(uri: str, manifest: Manifest) -> bool:
    try:
        return verify(uri).digest == manifest.digest
    except ArtifactError:
        return False


def read_manifest(uri: str) -> Manifest:
    """Raises ArtifactError when there is none or it is not one."""
    try:
        return Manifest.model_validate_json(storage.read_bytes(storage.join(uri, MANIFEST)))
    except storage.StorageError as error:
        raise ArtifactError(f"{uri} has no {MANIFEST}: it was never committed, or was torn; run its stage again") from error
    except ValidationError as error:
        raise ArtifactError(f"{uri}/{MANIFEST} is not a manifest ({error.error_count()} faults); run its stage again") from error


def verify(uri: str, hashes: bool = True) -> Manifest:
    """Check every file of an artifact against its manifest: presence and size, and with ``hashes`` the sha256.

    Raises:
        ArtifactError: naming the first file that is missing, cut or changed.
    """
    manifest = read_manifest(uri)
    if not storage.is_local(uri):
        present = set(storage.list_files(uri))
        if missing := [entry.path for entry in manifest.files if entry.path not in present]:
            raise ArtifactError(f"{uri}: {missing[0]} is missing; run its stage again")
        return manifest
    folder = storage.local_path(uri)
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise ArtifactError(f"{uri}: {entry.path} is missing; run its stage again")
        if (size := path.stat().st_size) != entry.size:
            raise ArtifactError(f"{uri}: {entry.path} has {size} bytes, not {entry.size}: it was cut; run its stage again")
        if hashes and file_sha256(path) != entry.sha256:
            raise ArtifactError(f"{uri}: {entry.path} does not have its recorded sha256: it was changed; run its stage again")
    return manifest


def fetch(ref: _Ref | str, expected_sha256: str | None = None) -> Path:
    """A verified local folder of an artifact: its own when local, else a download kept in the home folder's cache.

    Raises:
        ArtifactError: it is torn, or is not the artifact the ref was made for.
    """
    uri, expected = (ref.uri, ref.manifest_sha256) if isinstance(ref, _Ref) else (ref, expected_sha256)
    found = read_manifest(uri).digest
    if expected is not None and found != expected:
        raise ArtifactError(f"{uri} is artifact {found[:12]}, not {expected[:12]}: it was replaced since; run the stage that wrote it")
    if storage.is_local(uri):
        verify(uri)
        return storage.local_path(uri)
    kept = storage.home() / "cache" / found
    if not (kept / MANIFEST).exists():
        scratch = kept.with_name(f".{found}.{uuid.uuid4().hex}")
        storage.download_tree(uri, scratch)
        verify(str(scratch))
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(scratch, kept)
    verify(str(kept))
    return kept
