"""Where raw shards are: a folder, S3 or the Hugging Face hub. What is listed is what is read: a hub revision is a commit.

Shards come in the order of their names. A shard's bytes are brought whole, by ``download``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from bard_core.config.sources import RawSource

FORMATS = (".parquet", ".arrow", ".jsonl", ".json")  # of several in one place, the first is meant
_NOT_SHARDS = re.compile(r"(^|/)(\.|cache-[^/]*\.arrow$|dataset_info\.json$|dataset_dict\.json$|state\.json$)")
HUB = "hf://datasets/"


class SourceError(Exception):
    """Raw data that cannot be read at all: says which source and how to fix it."""


@dataclass(frozen=True)
class Shard:
    """One raw file. ``name``: its path below the source, without ending; ``sha256``: where the place itself knows it."""

    source: RawSource
    name: str
    uri: str
    size: int
    sha256: str | None = None
    revision: str | None = None

    @property
    def format(self) -> str:
        return "." + self.uri.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class _File:
    path: str  # below the place that was listed
    uri: str
    size: int
    sha256: str | None = None


def list_shards(source: RawSource) -> list[Shard]:
    """The shards of a source that its patterns and subsets choose, sorted by name.

    Raises:
        SourceError: the place does not exist, cannot be reached, or holds no shard.
    """
    base, pattern = base_of(source.uri)
    try:
        files, commit = _list_hub(source, base) if base.startswith(HUB) else (list(_list(base)), None)
    except SourceError:
        raise
    except Exception as error:  # every backend brings its own exceptions
        raise SourceError(f"source {source.name!r}: cannot list {base} ({type(error).__name__}: {error})") from error
    chosen = [file for file in files if not _NOT_SHARDS.search(file.path) and (pattern is None or pattern.fullmatch(file.path))]
    chosen = [file for file in chosen if _wanted(file.path, source)]
    format = next((format for format in FORMATS if any(file.path.endswith(format) for file in chosen)), None)
    if format is None:
        raise SourceError(
            f"source {source.name!r}: no *.parquet, *.arrow, *.jsonl or *.json under {source.uri}"
            f"{' in the subsets chosen' if source.include or source.exclude else ''}; "
            "give a folder, an s3:// prefix or hf://datasets/<owner>/<name>/<folder>"
        )
    return sorted(
        (
            Shard(source, file.path.removesuffix(format) or "0", file.uri, file.size, file.sha256, commit)
            for file in chosen
            if file.path.endswith(format)
        ),
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


def _wanted(path: str, source: RawSource) -> bool:
    """By include and exclude: a pattern names any folder that leads to the shard."""
    folders = path.split("/")[:-1]
    leading = {"/".join(folders[:depth]) for depth in range(1, len(folders) + 1)}

    def named(patterns: tuple[str, ...]) -> bool:
        return any(folder == pattern or fnmatchcase(folder, pattern) for pattern in patterns for folder in leading)

    return (not source.include or named(source.include)) and not named(source.exclude)


def _list(base: str) -> Iterator[_File]:
    """Files below a folder or prefix; the base itself when it is a file."""
    if base.startswith("s3://"):
        yield from _list_s3(base)
        return
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(base)
    scheme = f"{base.split('://')[0]}://" if "://" in base else ""
    for path, info in filesystem.find(root, detail=True).items():
        below = path.removeprefix(root).strip("/") or path.rsplit("/", 1)[-1]
        yield _File(below, scheme + path if scheme else path, int(info["size"]))


def s3_client() -> Any:
    """boto3's client; endpoint and credentials come from the usual AWS_* variables."""
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 6}, connect_timeout=10, read_timeout=30))


def _list_s3(base: str) -> Iterator[_File]:
    bucket, _, prefix = base.removeprefix("s3://").partition("/")
    for page in s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            below = item["Key"].removeprefix(prefix)
            if not below or below.startswith("/") or not prefix or prefix.endswith("/"):  # not a neighbour of the same beginning
                name = below.strip("/") or item["Key"].rsplit("/", 1)[-1]
                yield _File(name, f"s3://{bucket}/{item['Key']}", int(item["Size"]))


def _list_hub(source: RawSource, base: str) -> tuple[list[_File], str]:
    """Files of a hub dataset below a folder, and the commit that the revision is."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    owner, name, *folders = base.removeprefix(HUB).strip("/").split("/")
    repository, api = f"{owner}/{name}", HfApi()
    try:
        commit = api.dataset_info(repository, revision=source.revision).sha
        tree = api.list_repo_tree(repository, "/".join(folders) or None, recursive=True, revision=commit, repo_type="dataset")
        entries = [entry for entry in tree if isinstance(entry, RepoFile)]
    except Exception as error:  # RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError, ... and those of its client
        raise SourceError(
            f"source {source.name!r}: cannot list {base} at revision {source.revision} ({type(error).__name__}: {error}); "
            "check name and revision, accept the dataset's terms on its page, and set HF_TOKEN"
        ) from error
    prefix = "".join(f"{folder}/" for folder in folders)
    files = [
        _File(
            entry.path.removeprefix(prefix),
            f"{HUB}{repository}/{entry.path}",
            entry.size,
            entry.lfs.sha256 if entry.lfs else None,
        )
        for entry in entries
    ]
    return files, str(commit)
