"""Listing raw shards: patterns, subsets, formats, and errors that say what to do."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
from pydantic import ValidationError

from bard_core.config.sources import RawSource
from bard_core.data.download import brought
from bard_core.data.sources import SourceError, list_shards


def source(uri: str, **options: Any) -> RawSource:
    return RawSource(name="raw", schema_name="finevision", uri=uri, **options)


def tree(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(uri: str, **options: Any) -> list[str]:
    return [shard.name for shard in list_shards(source(uri, **options))]


def test_shards_come_sorted_with_their_sizes(tmp_path: Path) -> None:
    tree(tmp_path, "b.parquet", "a/0.parquet", "a/.hidden.parquet", "README.md")
    first, second = list_shards(source(str(tmp_path)))
    assert (first.name, first.size, first.format) == ("a/0", 11, ".parquet") and second.name == "b"
    with brought(first) as path:
        assert path.read_bytes() == b"a/0.parquet"
    assert names(str(tmp_path / "b.parquet")) == ["b"]


def test_patterns_braces_and_subsets_choose(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{subset}/train-{n}.parquet" for subset in ("ai2d", "chartqa", "docvqa(x)") for n in (0, 1)))
    tree(tmp_path, "ai2d/deep/train-0.parquet")
    assert names(f"{tmp_path}/*/train-0.parquet") == ["ai2d/train-0", "chartqa/train-0", "docvqa(x)/train-0"]
    assert names(f"{tmp_path}/{{ai2d,chartqa}}/*-1.parquet") == ["ai2d/train-1", "chartqa/train-1"]
    assert names(f"{tmp_path}/**/train-0.parquet")[0] == "ai2d/deep/train-0"
    assert names(str(tmp_path), include=("docvqa(x)",)) == ["docvqa(x)/train-0", "docvqa(x)/train-1"]
    assert names(str(tmp_path), exclude=("*qa*", "ai2d/deep")) == ["ai2d/train-0", "ai2d/train-1"]
    with pytest.raises(SourceError, match="in the subsets chosen"):
        names(str(tmp_path), include=("ai3d",))


def test_one_format_is_meant_and_the_files_of_a_saved_dataset_are_no_shards(tmp_path: Path) -> None:
    tree(tmp_path, "train/data-00000-of-00001.arrow", "train/cache-1.arrow", "train/state.json", "train/dataset_info.json")
    assert names(str(tmp_path)) == ["train/data-00000-of-00001"]
    tree(tmp_path, "x.json", "y.jsonl")
    assert names(str(tmp_path)) == ["train/data-00000-of-00001"] and names(f"{tmp_path}/*.json") == ["x"]


def test_any_fsspec_store_serves() -> None:
    fsspec.filesystem("memory").pipe("/bard-raw/0.parquet", b"bytes")
    (shard,) = list_shards(source("memory://bard-raw"))
    with brought(shard) as path:
        assert shard.name == "0" and path.read_bytes() == b"bytes"
    assert not path.exists()


def test_errors_name_the_source_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'raw': no \*.parquet.*hf://datasets"):
        names(str(tmp_path))
    with pytest.raises(ValidationError, match="needs a `revision`"):
        source("hf://datasets/owner/name")
    with pytest.raises(ValidationError, match="columns names 'text'; finevision has images, texts"):
        source(str(tmp_path), columns={"text": "x"})
