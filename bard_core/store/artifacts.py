"""Directories that cannot lie.

A directory is an artifact once its ``manifest.json`` is there, with every file's size and sha256. The manifest is written last
and atomically: no manifest, no artifact.
"""

import hashlib
import json
import logging
import math
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from bard_core.store import storage, workshop
from bard_core.store.refs import Frozen, Ref

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
DOWNLOADS = 2  # of an artifact that arrives damaged, before it is damaged there
AGAIN = "run the same command again, which makes it anew (on a Flyte cluster with --overwrite-cache)"
Part = str | tuple[str, ...]  # how the paths of an artifact's files begin, that are all one wants of it
Kind = Literal["dataset", "unit", "looks", "teacher", "model", "checkpoint", "benchmark", "evaluation", "report"]


class ArtifactError(Exception):
    """An artifact is missing, torn or changed: says what, where and how to fix it."""


class DamagedError(ArtifactError):
    """An artifact was whole and is not any more: bytes are missing or changed."""


class FileEntry(Frozen):
    """One file: relative path, size in bytes, sha256."""

    path: str
    size: int
    sha256: str

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/") or "\\" in path:
            raise ValueError(f"{path!r} leads out of the artifact's folder")
        return path


class Manifest(Frozen):
    """What an artifact consists of and where it came from."""

    kind: Kind
    files: tuple[FileEntry, ...]
    step: int | None = None
    config_digest: str | None = None
    parent_digest: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 of the manifest's canonical JSON."""
        return digest(self)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of plain values and pydantic models.

    Raises:
        TypeError: a value has no canonical form (a path, a set, NaN, ...); says where it stands.
    """
    text = json.dumps(_canonical(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any, where: str) -> Any:
    if isinstance(value, BaseModel):
        return {name: _canonical(getattr(value, name), f"{where}.{name}") for name in value.model_dump()}
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
    raise TypeError(
        f"{where}: a {type(value).__name__} ({value!r}) has no canonical form; pass str, int, bool, None or a finite float"
    )


def file_entries(folder: Path, mine: Callable[[str], bool] = lambda name: True) -> tuple[FileEntry, ...]:
    """Every file below the folder that is ``mine``, except the folder's own manifest, sorted by path.

    Raises:
        ArtifactError: a symbolic link is among them.
    """
    entries = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ArtifactError(f"{path} is a symbolic link, whose target may change: copy what it points to into the folder")
        if path.is_file() and name != MANIFEST and mine(name):
            entries.append(FileEntry(path=name, size=path.stat().st_size, sha256=storage.sha256(str(path))))
    return tuple(entries)


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

    An artifact with the same digest already there is kept; anything else there is replaced. A failure (disk full, no
    permission) leaves ``staging`` as it was, and at ``uri`` either what was there or nothing that verifies.

    Raises:
        ArtifactError: staging holds no files, or a symbolic link. TypeError: metadata has no canonical form.
    """
    entries = file_entries(staging)
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
    if not storage.is_local(uri):
        if not _already_there(uri, manifest.digest):
            _publish_remote(staging, uri, manifest)
        return manifest
    target = storage.local_path(uri).absolute()
    if _already_there(uri, manifest.digest):
        if staging.absolute() != target:
            shutil.rmtree(staging)
        return manifest
    target.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(str(staging), manifest)
    workshop.replace_folder(staging, target)
    return manifest


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Make the folder at ``uri``, whose files are all there, an artifact. This is the last thing to be written."""
    storage.write_bytes(storage.join(uri, MANIFEST), (manifest.model_dump_json(indent=2) + "\n").encode())


def _publish_remote(staging: Path, uri: str, manifest: Manifest) -> None:
    """The old manifest goes first and the new one comes last, so a torn replacement is no artifact."""
    storage.delete_file(storage.join(uri, MANIFEST))
    kept = {entry.path for entry in manifest.files}
    for name in set(storage.list_files(uri)) - kept:
        storage.delete_file(storage.join(uri, name))
    storage.upload_tree(staging, uri)
    write_manifest(uri, manifest)


def _already_there(uri: str, wanted: str, part: Part = "") -> bool:
    try:
        return read_manifest(uri).digest == wanted and verify(uri, part=part).digest == wanted
    except ArtifactError:
        return False


def read_manifest(uri: str) -> Manifest:
    """Raises ArtifactError when there is none or it is not one."""
    try:
        return Manifest.model_validate_json(storage.read_bytes(storage.join(uri, MANIFEST)))
    except storage.NothingThereError as error:
        raise ArtifactError(f"{uri} has no {MANIFEST}: it was never committed, or was torn; {AGAIN}") from error
    except ValidationError as error:
        raise DamagedError(f"{uri}/{MANIFEST} is not a manifest ({error.error_count()} faults); {AGAIN}") from error


def verify(uri: str, hashes: bool | Callable[[FileEntry], bool] = True, part: Part = "") -> Manifest:
    """Check an artifact, local or remote, against its manifest: its files are those listed, whole and (``hashes``) unchanged.

    ``hashes`` may choose the files to hash, so that several processes share the work. ``part``: only files that begin so.

    Raises:
        ArtifactError: naming the first file that is missing, unlisted, cut or changed.
    """
    manifest = read_manifest(uri)
    sizes = {name: size for name, size in storage.file_sizes(uri).items() if name.startswith(part)}
    files = [entry for entry in manifest.files if entry.path.startswith(part)]
    for entry in files:
        if entry.path not in sizes:
            raise DamagedError(f"{uri}: {entry.path} is missing; {AGAIN}")
        if sizes[entry.path] != entry.size:
            raise DamagedError(f"{uri}: {entry.path} has {sizes[entry.path]} bytes, not {entry.size}: it was cut; {AGAIN}")
    if extra := sorted(sizes.keys() - {entry.path for entry in files} - {MANIFEST}):
        raise ArtifactError(f"{uri}: {extra[0]} is not in the manifest: it was added later; remove it, or {AGAIN}")
    for entry in files if hashes else ():
        if callable(hashes) and not hashes(entry):
            continue
        if storage.sha256(storage.join(uri, entry.path)) != entry.sha256:
            raise DamagedError(f"{uri}: {entry.path} does not have its recorded sha256: it was changed; {AGAIN}")
    return manifest


def standing(uri: str) -> Manifest | None:
    """The manifest of a whole artifact at ``uri``, every file hashed; None where there is none. A damaged one is set aside."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        return None
    try:
        return verify(uri)
    except ArtifactError as error:
        set_aside(uri, error)
        return None


def set_aside(uri: str, why: ArtifactError) -> None:
    """Give a damaged artifact the name ``<uri>.damaged``, say so, and leave its place to one made anew."""
    target, number = f"{uri}.damaged", 1
    while storage.file_sizes(target):
        number += 1
        target = f"{uri}.damaged-{number}"
    try:
        storage.move_tree(uri, target)
    except FileNotFoundError:
        return  # another process was faster
    log.error("%s; it was set aside as %s", str(why).removesuffix(f"; {AGAIN}"), target)


def fetch(ref: Ref | str, expected_sha256: str | None = None, part: Part = "") -> Path:
    """A verified local folder of an artifact: its own when local, else a download kept in the home folder's cache.

    ``part``: only the files whose path begins so (``processor/``) are brought and verified. A damaged cached copy is downloaded
    again, and so is a download that is not what the manifest says: bytes flip on the way. An artifact that is damaged where it
    lies is set aside.

    Raises:
        ArtifactError: it is torn, has no such part, or is not the artifact the ref was made for.
    """
    uri, expected = (ref.uri, ref.manifest_sha256) if isinstance(ref, Ref) else (ref, expected_sha256)
    try:
        return _fetch(uri, expected, part)
    except DamagedError:
        try:
            verify(uri, part=part)
        except DamagedError as error:
            set_aside(uri, error)
            raise
    return _fetch(uri, expected, part)  # it is whole where it lies: bytes flipped on the way


def _fetch(uri: str, expected: str | None, part: Part) -> Path:
    if storage.is_local(uri):
        _holding(uri, expected, part)
        verify(uri, part=part)
        return storage.local_path(uri)
    for _ in range(DOWNLOADS - 1):
        try:
            return _bring(uri, expected, part)
        except ArtifactError as error:
            log.warning("%s; fetching it again", error)
    return _bring(uri, expected, part)


def _holding(uri: str, expected: str | None, part: Part) -> str:
    found = _expect(uri, expected, (manifest := read_manifest(uri)).digest)
    if not any(entry.path.startswith(part) for entry in manifest.files):
        raise ArtifactError(f"{uri} has no {part}: it holds {', '.join(sorted({e.path.split('/')[0] for e in manifest.files}))}")
    return found


def _bring(uri: str, expected: str | None, part: Part) -> Path:
    found = _holding(uri, expected, part)
    cache = storage.home() / "cache"
    kept = cache / (f"{found}-{digest(part)[:8]}" if part else found)
    if _already_there(str(kept), found, part):
        return kept
    scratch = cache / f".{found}.{uuid.uuid4().hex}"
    try:
        storage.download_tree(uri, scratch, lambda name: name.startswith(part) or name == MANIFEST)
        _expect(uri, found, verify(str(scratch), part=part).digest)
        workshop.replace_folder(scratch, kept)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return kept


def _expect(uri: str, expected: str | None, found: str) -> str:
    if expected is not None and found != expected:
        raise ArtifactError(f"{uri} is artifact {found[:12]}, not {expected[:12]}: it was replaced since; {AGAIN}")
    return found
