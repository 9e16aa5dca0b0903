"""Where raw shards are: a folder, S3 or the Hugging Face hub. What is listed is what is read: a hub revision is a commit.

Shards come in the order of their names. A shard's bytes are brought whole, by ``download``.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from bard_core.config.sources import RawSource

FORMATS = (".parquet", ".arrow", ".jsonl", ".json")  # of several in one place, the first is meant
_NOT_SHARDS = re.compile(r"(^|/)(\.|cache-[^/]*\.arrow$|dataset_info\.json$|dataset_dict\.json$|state\.json$)")
HUB = "hf://datasets/"
READ_TIMEOUT_S = 30


class SourceError(Exception):
    """Raw data that cannot be read at all: says which source and how to fix it."""


@dataclass(frozen=True)
class File:
    """One file as its place lists it. ``path``: below what was listed; ``revision``: the commit of a hub's repository.

    ``sha256``, ``git_sha1`` (of a git blob) and ``etag``: what the place itself knows of its bytes.
    """

    path: str
    uri: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None
    etag: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Shard:
    """One raw file. ``name``: its path below the source, without ending."""

    source: RawSource
    name: str
    file: File

    @property
    def uri(self) -> str:
        return self.file.uri

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def sha256(self) -> str | None:
        return self.file.sha256

    @property
    def revision(self) -> str | None:
        return self.file.revision

    @property
    def format(self) -> str:
        return "." + self.uri.rsplit(".", 1)[-1]


def list_shards(source: RawSource) -> list[Shard]:
    """The shards of a source that its patterns and subsets choose, sorted by name.

    Raises:
        SourceError: the place does not exist, cannot be reached, or holds no shard.
    """
    base, pattern = base_of(source.uri)
    try:
        files = list_files(base, source.revision)
    except SourceError as error:
        raise SourceError(f"source {source.name!r}: {error}") from error
    chosen = [file for file in files if not _NOT_SHARDS.search(file.path) and (pattern is None or pattern.fullmatch(file.path))]
    chosen = [file for file in chosen if wanted(file.path, source.include, source.exclude)]
    format = next((format for format in FORMATS if any(file.path.endswith(format) for file in chosen)), None)
    if format is None:
        raise SourceError(
            f"source {source.name!r}: no *.parquet, *.arrow, *.jsonl or *.json under {source.uri}"
            f"{' in the subsets chosen' if source.include or source.exclude else ''}; "
            "give a folder, an s3:// prefix or hf://datasets/<owner>/<name>/<folder>"
        )
    return sorted(
        (Shard(source, file.path.removesuffix(format) or "0", file) for file in chosen if file.path.endswith(format)),
        key=lambda shard: shard.name,
    )


def base_of(uri: str) -> tuple[str, re.Pattern[str] | None]:
    """The longest folder before the first wildcard, and what the path below it must match; None: everything."""
    first = re.search(r"[*?\[{]", uri)
    if first is None:
        return uri, None
    import bracex
    from fsspec.utils import glob_translate

    base = uri[: first.start()].rsplit("/", 1)[0]
    wanted = [glob_translate(text.removeprefix(f"{base}/")) for text in bracex.iexpand(uri)]
    return base, re.compile("|".join(f"(?:{text})" for text in wanted))


def wanted(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """By include and exclude: a pattern names any folder that leads to the file."""
    folders = path.split("/")[:-1]
    leading = {"/".join(folders[:depth]) for depth in range(1, len(folders) + 1)}

    def named(patterns: Sequence[str]) -> bool:
        return any(folder == pattern or fnmatchcase(folder, pattern) for pattern in patterns for folder in leading)

    return (not include or named(include)) and not named(exclude)


def list_files(place: str, revision: str | None = None) -> list[File]:
    """All files below a folder, an s3:// prefix, hf://datasets/<owner>/<name>[/<folder>] or a model's hf://<owner>/<name>.

    Raises:
        SourceError: the place cannot be reached.
    """
    try:
        return _list_hub(place, revision) if place.startswith("hf://") else list(_list(place))
    except SourceError:
        raise
    except Exception as error:  # every backend brings its own exceptions
        raise SourceError(f"cannot list {place} ({type(error).__name__}: {error})") from error


def _list(base: str) -> Iterator[File]:
    """Files below a folder or prefix; the base itself when it is a file."""
    if base.startswith("s3://"):
        yield from _list_s3(base)
        return
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(base)
    scheme = f"{base.split('://')[0]}://" if "://" in base else ""
    for path, info in filesystem.find(root, detail=True).items():
        below = path.removeprefix(root).strip("/") or path.rsplit("/", 1)[-1]
        yield File(below, scheme + path if scheme else path, int(info["size"]))


def s3_client() -> Any:
    """boto3's client; endpoint and credentials come from the usual AWS_* variables."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", config=Config(retries={"mode": "standard", "max_attempts": 6}, connect_timeout=10, read_timeout=READ_TIMEOUT_S)
    )


def _list_s3(base: str) -> Iterator[File]:
    bucket, _, prefix = base.removeprefix("s3://").partition("/")
    for page in s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            below = item["Key"].removeprefix(prefix)
            if not below or below.startswith("/") or not prefix or prefix.endswith("/"):  # not a neighbour of the same beginning
                name = below.strip("/") or item["Key"].rsplit("/", 1)[-1]
                yield File(name, f"s3://{bucket}/{item['Key']}", int(item["Size"]), etag=item["ETag"].strip('"'))


def repository(uri: str) -> tuple[str, str, str]:
    """(kind, owner/name, path inside) of an hf:// place."""
    kind, rest = ("dataset", uri.removeprefix(HUB)) if uri.startswith(HUB) else ("model", uri.removeprefix("hf://"))
    owner, name, *inside = rest.strip("/").split("/", 2)
    return kind, f"{owner}/{name}", inside[0] if inside else ""


def _list_hub(place: str, revision: str | None) -> list[File]:
    """Files of a repository below a folder, at the commit that the revision is."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    kind, name, folder = repository(place)
    try:
        api = HfApi()
        commit = str(api.repo_info(name, repo_type=kind, revision=revision).sha)
        tree = api.list_repo_tree(name, folder or None, recursive=True, revision=commit, repo_type=kind)
        entries = [entry for entry in tree if isinstance(entry, RepoFile)]
    except Exception as error:  # RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError, ... and those of its client
        raise SourceError(
            f"cannot list {place} at revision {revision} ({type(error).__name__}: {error}); "
            "check name and revision, accept the dataset's terms on its page, and set HF_TOKEN"
        ) from error
    start, below = (HUB if kind == "dataset" else "hf://"), f"{folder}/" if folder else ""
    return [
        File(
            path=entry.path.removeprefix(below),
            uri=f"{start}{name}/{entry.path}",
            size=entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            git_sha1=None if entry.lfs else entry.blob_id,
            revision=commit,
        )
        for entry in entries
    ]
