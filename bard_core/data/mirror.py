"""A data set or a base model of the hub, of S3 or of a folder, copied whole to a folder or an s3:// prefix.

Files are brought and checked one by one. One that is there and the same is left, so a copy that was stopped goes on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bard_core.data.download import beside, bring, git_sha1
from bard_core.data.sources import File, SourceError, list_files, s3_client, wanted
from bard_core.store import storage, workshop

ORIGIN = "bard-origin"  # metadata of an object that we wrote: what it is a copy of


@dataclass(frozen=True)
class Copy:
    """What was copied: from where, at which commit, to where; all files and bytes, and the files that were not there yet."""

    place: str
    commit: str | None
    output: str
    files: int
    bytes: int
    fetched: int


def copy(place: str, output: str, revision: str | None = None, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Copy:
    """Copy what is below ``place`` (see ``sources.list_files``) under a progress bar.

    Args:
        output: a folder or s3:// prefix. include, exclude: files or the folders that lead to them, as names or patterns.

    Raises:
        SourceError: the place cannot be read, or nothing there is wanted. What is copied by then stays.
    """
    from bard_core.progress import Bar

    files = [file for file in list_files(place, revision) if wanted(f"{file.path}/", include, exclude)]  # a file leads to itself
    if not files:
        raise SourceError(f"nothing to copy below {place}{' that --include and --exclude choose' if include or exclude else ''}")
    put = _to_folder if storage.is_local(output) else _to_s3
    fetched, total = 0, sum(file.size for file in files)
    with Bar(total=total, desc="download", unit="B", unit_scale=True) as bar:
        for number, file in enumerate(files, 1):
            fetched += put(file, storage.join(output, file.path))
            bar.set_postfix_str(f"{number} of {len(files)} files", refresh=False)
            bar.update(file.size)
    return Copy(place, files[0].revision, output, len(files), total, fetched)


def _to_folder(file: File, target: str) -> bool:
    """Whether it was not there yet."""
    path = storage.local_path(target)
    if path.is_file() and _same(file, path):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as partial:
        bring(file, partial)
    return True


def _same(file: File, path: Path) -> bool:
    """By a checksum that the file's place knows; without one nobody can tell."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return storage.sha256(str(path)) == file.sha256
    if file.git_sha1 is not None:
        return git_sha1(path) == file.git_sha1
    with path.open("rb") as opened:
        return file.etag is not None and hashlib.file_digest(opened, "md5").hexdigest() == file.etag


def _to_s3(file: File, target: str) -> bool:
    """Whether it was not there yet; the copy carries the name of its original."""
    client, (bucket, _, key) = s3_client(), target.removeprefix("s3://").partition("/")
    known = file.sha256 or file.git_sha1 or file.etag
    origin = hashlib.sha256(f"{file.uri} {known}".encode()).hexdigest()
    try:
        if known is not None and _there(client, bucket, key) == (file.size, origin):
            return False
        with workshop.scratch("download") as folder:
            path = bring(file, folder / "file")
            client.upload_file(str(path), bucket, key, ExtraArgs={"Metadata": {ORIGIN: origin}})
        return True
    except SourceError:
        raise
    except Exception as error:  # botocore's and s3transfer's have no common ancestor
        raise SourceError(
            f"cannot write {target} ({type(error).__name__}: {error}); see to bucket and credentials and run it again, what is "
            "there stays"
        ) from error


def _there(client: Any, bucket: str, key: str) -> tuple[int, str] | None:
    """Size and origin of an object; None where there is none."""
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
            return None
        raise
    return int(head["ContentLength"]), head["Metadata"].get(ORIGIN, "")
