"""Bytes in a local folder or under an s3:// prefix, through fsspec; local writes are atomic.

S3 takes its endpoint and credentials from the usual AWS_* variables (``AWS_ENDPOINT_URL`` for another S3 API).
"""

import os
import uuid
from pathlib import Path
from typing import Any

from bard_core.config import StorageConfig


class StorageError(Exception):
    """A place cannot be read or written: says which, why and how to fix it."""


def home() -> Path:
    """The embedded defaults' folder: ``$BARD_HOME``, else ``.bard`` beside the code. Created when missing."""
    folder = Path(os.environ.get("BARD_HOME") or Path(__file__).resolve().parent.parent / ".bard").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def root_uri(config: StorageConfig) -> str:
    """Where artifacts go: the configured root, else ``home()``."""
    return config.root_uri.rstrip("/") if config.root_uri else str(home())


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path of a local URI.

    Raises:
        StorageError: the URI is remote.
    """
    if not is_local(uri):
        raise StorageError(f"{uri} is remote; fetch it with bard_core.artifacts.fetch first")
    return Path(uri.removeprefix("file://"))


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
    filesystem, path = _filesystem(uri)
    filesystem.invalidate_cache()
    return bool(filesystem.exists(path))


def read_bytes(uri: str) -> bytes:
    """Raises StorageError when there is nothing."""
    filesystem, path = _filesystem(uri)
    try:
        return bytes(filesystem.cat_file(path))
    except FileNotFoundError as error:
        raise StorageError(f"{uri}: nothing there") from error


def write_bytes(uri: str, data: bytes) -> None:
    """Write whole or not at all: locally temp file, fsync, rename; an S3 put is atomic by itself."""
    if not is_local(uri):
        filesystem, path = _filesystem(uri)
        filesystem.pipe_file(path, data)
        return
    target = local_path(uri)
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


def list_files(uri: str) -> list[str]:
    """Relative paths of all files below ``uri``, sorted; empty when there is nothing."""
    filesystem, path = _filesystem(uri)
    filesystem.invalidate_cache()
    base = path.rstrip("/") + "/"
    return sorted(name.removeprefix(base) for name in filesystem.find(path) if name.startswith(base))


def upload_tree(folder: Path, uri: str) -> None:
    """Copy a local folder's files to ``uri``."""
    filesystem, path = _filesystem(uri)
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        target = f"{path.rstrip('/')}/{file.relative_to(folder).as_posix()}"
        filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        filesystem.put_file(str(file), target)


def download_tree(uri: str, folder: Path) -> None:
    """Copy all files below ``uri`` into a local folder."""
    filesystem, path = _filesystem(uri)
    for name in list_files(uri):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(f"{path.rstrip('/')}/{name}", str(target))
