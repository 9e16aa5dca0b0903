"""Raw shards brought here, whole and checked. What is finished stays when the rest fails: call again and it goes on.

S3 objects are read whole, so that S3's own checksum comes along (a ranged read carries none); hub files by ``huggingface_hub``,
which goes on where it was cut, and are then compared with the sha256 that the hub lists.
"""

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bard_core.config.sources import RawSource
from bard_core.data.sources import File, Shard, SourceError, list_shards, repository, s3_client
from bard_core.store import storage, workshop

TRIES, PAUSE_S = 5, 0.5
_CHUNK = 8 * 2**20
# What a new try cannot mend: say so at once.
_FINAL = (
    "ExpiredToken",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AccessDenied",
    "NoSuchKey",
    "NoSuchBucket",
    "403",
    "404",
)


def cache_folder() -> Path:
    return storage.home() / "raw"


def download(source: RawSource, on_shard: Callable[[Shard], None] = lambda shard: None) -> list[Path]:
    """Bring every shard of a source into the cache, where ``brought`` finds it. ``on_shard``: called after each.

    Raises:
        SourceError: a shard cannot be had; those before it stay.
    """
    kept = []
    for shard in list_shards(source):
        kept.append(keep(shard))
        on_shard(shard)
    return kept


@contextlib.contextmanager
def brought(shard: Shard) -> Iterator[Path]:
    """A local file with the shard's bytes: itself where it is local, the cached one, else one that is gone afterwards.

    Raises:
        SourceError: it cannot be had.
    """
    if storage.is_local(shard.uri):
        yield storage.local_path(shard.uri)
        return
    kept = cached(shard)
    if kept.exists():
        yield kept
        return
    with workshop.scratch("raw") as folder:
        yield _of_source(shard, folder / f"shard{shard.format}")


def cached(shard: Shard) -> Path:
    """Where a downloaded shard is kept; the name changes with the place, the revision and the size."""
    key = hashlib.sha256(f"{shard.uri}@{shard.revision}:{shard.size}".encode()).hexdigest()[:24]
    return cache_folder() / f"{key}{shard.format}"


def keep(shard: Shard) -> Path:
    """A shard's file: itself where it is local, else in the cache, where it is brought when missing.

    Raises:
        SourceError: it cannot be had.
    """
    if storage.is_local(shard.uri):
        return storage.local_path(shard.uri)
    target = cached(shard)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with beside(target) as partial:
            _of_source(shard, partial)
    return target


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A new path beside ``target``, which becomes it when the body ends well."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _of_source(shard: Shard, target: Path) -> Path:
    try:
        return bring(shard.file, target)
    except SourceError as error:
        raise SourceError(f"source {shard.source.name!r}: {error}") from error


def bring(file: File, target: Path) -> Path:
    """A file's bytes as ``target``: tried until they are here and right.

    Raises:
        SourceError: after ``TRIES``, or at once where trying again cannot help.
    """
    for number in range(1, TRIES + 1):
        try:
            fetch = _from_s3 if file.uri.startswith("s3://") else _from_hub if file.uri.startswith("hf://") else _from_elsewhere
            fetch(file, target)
            _check(file, target)
            return target
        except Exception as error:  # every backend brings its own exceptions
            code = _code(error)
            if number == TRIES or code in _FINAL:
                raise SourceError(
                    f"cannot read {file.uri} ({type(error).__name__}: {error}); "
                    + ("check the credentials and the name" if code in _FINAL else f"tried {number} times, run it again")
                ) from error
            time.sleep(PAUSE_S * 2 ** (number - 1))
    raise AssertionError("unreachable")


def _code(error: Exception) -> str:
    """The error code of an S3 answer, or the HTTP status of a hub's."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(response, "status_code", ""))


def _check(file: File, path: Path) -> None:
    if (size := path.stat().st_size) != file.size:
        raise OSError(f"{size} bytes came, not {file.size}")
    if file.sha256 is not None and (found := storage.sha256(str(path))) != file.sha256:
        raise OSError(f"the bytes have sha256 {found[:12]}, not {file.sha256[:12]}")
    if file.git_sha1 is not None and (found := git_sha1(path)) != file.git_sha1:
        raise OSError(f"the bytes have git's sha1 {found[:12]}, not {file.git_sha1[:12]}")


def git_sha1(path: Path) -> str:
    """How git names the bytes, and with it the hub those that are in no large-file store."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _from_s3(file: File, target: Path) -> None:
    """One whole read; the client checks the object's own checksum, and a plain ETag is the MD5."""
    bucket, _, key = file.uri.removeprefix("s3://").partition("/")
    answer = s3_client().get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    md5 = hashlib.md5(usedforsecurity=False)
    with target.open("wb") as sink:
        for chunk in answer["Body"].iter_chunks(_CHUNK):
            md5.update(chunk)
            sink.write(chunk)
    etag = answer["ETag"].strip('"')
    plain = len(etag) == 32 and answer.get("ServerSideEncryption", "AES256") == "AES256"
    if plain and etag != md5.hexdigest():
        raise OSError(f"the bytes have MD5 {md5.hexdigest()[:12]}, the object's is {etag[:12]}")


def _from_hub(file: File, target: Path) -> None:
    from huggingface_hub import hf_hub_download

    kind, name, path = repository(file.uri)
    folder = cache_folder() / "hub" / hashlib.sha256(file.uri.encode()).hexdigest()[:24]  # a cut download goes on from here
    found = hf_hub_download(name, path, repo_type=kind, revision=file.revision, local_dir=folder)
    shutil.move(found, target)
    shutil.rmtree(folder, ignore_errors=True)


def _from_elsewhere(file: File, target: Path) -> None:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(file.uri)
    filesystem.get_file(path, str(target))
