"""Bytes in a local folder or under an s3:// prefix, through fsspec; local writes are atomic.

S3 takes its endpoint and credentials from the usual AWS_* variables (``AWS_ENDPOINT_URL`` for another S3 API).
Every call outlives a hiccup of the place; what remains is a ``StorageError`` (see ``hiccups``).
"""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from bard_core.config.sections.storage import StorageConfig
from bard_core.store.hiccups import FULL, NothingThereError, StorageError, explained, persistent, tried

__all__ = ["NothingThereError", "StorageError"]


def home_path() -> Path:
    """Where ``home()`` is, made or not."""
    return Path(os.environ.get("BARD_HOME") or Path(__file__).resolve().parents[2] / ".bard").absolute()


def home() -> Path:
    """The embedded defaults' folder: ``$BARD_HOME``, else ``.bard`` beside the code. Created when missing.

    Raises:
        StorageError: it cannot be made.
    """
    folder = home_path()
    with persistent(f"BARD_HOME {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def root_uri(config: StorageConfig) -> str:
    """Where artifacts go: the configured root, else ``home()``."""
    return config.root_uri.rstrip("/") if config.root_uri else str(home())


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path of a local URI; ``~`` is the user's home, as it is to fsspec.

    Raises:
        StorageError: the URI is remote.
    """
    if not is_local(uri):
        raise StorageError(f"{uri} is remote; fetch it with bard_core.store.artifacts.fetch first")
    return Path(uri.removeprefix("file://")).expanduser()


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def _filesystem(uri: str) -> tuple[Any, str]:
    import fsspec

    options = {"client_kwargs": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}} if os.environ.get("AWS_ENDPOINT_URL") else {}
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **(options if uri.startswith("s3://") else {}))
    except (ImportError, ValueError) as error:
        raise StorageError(f"{uri}: no way to open this kind of place ({error}); use a folder or s3://bucket/prefix") from error
    return filesystem, str(path)


def exists(uri: str) -> bool:
    def ask() -> bool:
        filesystem, path = _filesystem(uri)
        filesystem.invalidate_cache()
        return bool(filesystem.exists(path))

    return tried(uri, ask)


def read_bytes(uri: str) -> bytes:
    """Raises NothingThereError when there is nothing."""

    def read() -> bytes:
        filesystem, path = _filesystem(uri)
        return bytes(filesystem.cat_file(path))

    return tried(uri, read)


def write_bytes(uri: str, data: bytes) -> None:
    """Write whole or not at all: locally temp file, fsync, rename; an S3 put is atomic by itself."""

    def put() -> None:
        filesystem, path = _filesystem(uri)
        filesystem.pipe_file(path, data)

    tried(uri, (lambda: _write_local(local_path(uri), data)) if is_local(uri) else put, needed=len(data))


def _write_local(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def create_file(uri: str, data: bytes) -> bool:
    """Write whole, and only where nothing is yet: of several who try at once, one gets True.

    Locally a hard link, which fails where a file is; on S3 a conditional put (``If-None-Match: *``).
    """
    if not is_local(uri):

        def put() -> bool:
            filesystem, path = _filesystem(uri)
            try:
                filesystem.pipe_file(path, data, mode="create")
            except FileExistsError:
                return bytes(filesystem.cat_file(path)) == data  # ours, when the answer to an earlier try was lost
            return True

        return tried(uri, put, needed=len(data))
    target = local_path(uri)
    scratch = f"{target}.{uuid.uuid4().hex}.new"
    write_bytes(scratch, data)
    try:
        with contextlib.suppress(FileExistsError):
            tried(uri, lambda: os.link(scratch, target))
        return os.path.samefile(scratch, target)
    finally:
        os.unlink(scratch)


def file_sizes(uri: str) -> dict[str, int]:
    """Relative path -> size in bytes of every file below ``uri``; empty when there is nothing.

    Raises:
        StorageError: a name would lead out of the folder.
    """

    def find() -> dict[str, int]:
        filesystem, path = _filesystem(uri)
        filesystem.invalidate_cache()
        base = path.rstrip("/") + "/"
        found = filesystem.find(path, detail=True).items()
        return {name.removeprefix(base): int(info["size"] or 0) for name, info in found if name.startswith(base)}

    sizes = tried(uri, find)
    if bad := [name for name in sizes if ".." in name.split("/")]:
        raise StorageError(f"{uri}: the file name {bad[0]!r} leads out of the folder; remove that file")
    return sizes


def file_facts(uri: str) -> dict[str, dict[str, Any]]:
    """Relative path -> what the place itself says of every file below ``uri`` (size, ETag, ...)."""
    filesystem, path = _filesystem(uri)
    filesystem.invalidate_cache()
    base = path.rstrip("/") + "/"
    found = filesystem.find(path, detail=True).items()
    return {name.removeprefix(base): dict(info) for name, info in found if name.startswith(base)}


def list_folders(uri: str) -> list[str]:
    """Names of the folders right below ``uri``, sorted; empty when there is nothing."""

    def ask() -> list[str]:
        filesystem, path = _filesystem(uri)
        filesystem.invalidate_cache()
        try:
            found = filesystem.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(info["name"]).rstrip("/").rsplit("/", 1)[-1] for info in found if info["type"] == "directory")

    return tried(uri, ask)


def list_files(uri: str) -> list[str]:
    """Relative paths of all files below ``uri``, sorted; empty when there is nothing."""
    return sorted(file_sizes(uri))


def sha256(uri: str) -> str:
    """sha256 (hex) of one file, read as a stream. Raises NothingThereError when there is nothing."""

    def read() -> str:
        filesystem, path = _filesystem(uri)
        total = hashlib.sha256()
        with filesystem.open(path, "rb") as file:
            while chunk := file.read(8 * 2**20):
                total.update(chunk)
        return total.hexdigest()

    return tried(uri, read)


def delete_file(uri: str) -> None:
    """Remove one file; nothing happens when it is not there."""

    def remove() -> None:
        filesystem, path = _filesystem(uri)
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm_file(path)

    tried(uri, remove)


def delete_tree(uri: str, first: str = "") -> None:
    """Remove everything below ``uri``, the file ``first`` before the others; nothing happens when there is nothing."""
    if is_local(uri):
        folder = local_path(uri)
        if first:
            (folder / first).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return
    for name in sorted(list_files(uri), key=lambda name: name != first):
        delete_file(join(uri, name))


def move_tree(uri: str, target: str) -> None:
    """Rename a folder, or move all objects of an S3 prefix. Raises FileNotFoundError when there is nothing."""
    if is_local(uri):
        os.rename(local_path(uri), local_path(target))
        return
    names = list_files(uri)
    if not names:
        raise FileNotFoundError(uri)
    filesystem, path = _filesystem(uri)
    for name in names:
        filesystem.cp_file(f"{path.rstrip('/')}/{name}", f"{_filesystem(target)[1].rstrip('/')}/{name}")
    for name in names:
        delete_file(join(uri, name))


def upload_tree(folder: Path, uri: str, names: Collection[str] | None = None) -> None:
    """Copy a local folder's files, or those with the given relative ``names``, to ``uri``."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        if names is None or name in names:
            tried(join(uri, name), lambda file=file, name=name: _put(file, join(uri, name)), needed=file.stat().st_size)  # type: ignore[misc]


def _put(file: Path, uri: str) -> None:
    filesystem, target = _filesystem(uri)
    filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
    filesystem.put_file(str(file), target)


def download_tree(uri: str, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Copy all files below ``uri`` whose relative names are ``wanted`` into a local folder.

    Raises:
        NothingThereError: there are none.
    """
    sizes = {name: size for name, size in file_sizes(uri).items() if wanted(name)}
    if not sizes:
        raise NothingThereError(f"{uri}: nothing there")
    for name, size in sorted(sizes.items()):
        download_file(join(uri, name), folder / name, size)


def download_file(uri: str, target: Path, size: int | None = None) -> None:
    """Copy one file here. Raises NothingThereError when there is none."""

    def get() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        filesystem, path = _filesystem(uri)
        filesystem.get_file(path, str(target))

    try:
        tried(uri, get, needed=size)
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL:
            raise explained(str(target), error.__cause__, size) from error.__cause__
        raise
