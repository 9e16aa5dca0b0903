"""Data sets and models copied whole, from a stand-in of the hub and an S3 API, to folders and to S3; what is there stays."""

from pathlib import Path

import pytest

from bard_core.data.mirror import copy
from bard_core.data.sources import SourceError, s3_client

from ..hub import BODY, COMMIT, CONFIG, Hub


@pytest.mark.parametrize("place", ["hf://o/open", "hf://datasets/o/open"])
def test_a_repository_is_copied_and_what_is_there_is_not_brought_again(place: str, hub: type[Hub], bard_home: Path) -> None:
    output = bard_home.parent / "copy"
    done = copy(place, str(output), "v1")
    assert (done.commit, done.files, done.bytes, done.fetched) == (COMMIT, 2, len(BODY) + len(CONFIG), 2)
    assert (output / "sub" / "a.parquet").read_bytes() == BODY and (output / "config.json").read_bytes() == CONFIG
    hub.asked.clear()
    (output / "config.json").write_bytes(CONFIG[::-1])  # of the same size, but not the same
    assert copy(place, str(output), "v1").fetched == 1 and (output / "config.json").read_bytes() == CONFIG
    assert not any("a.parquet" in path for path in hub.asked)
    assert {path.name for path in output.rglob("*")} == {"sub", "a.parquet", "config.json"}


def test_only_what_is_chosen_is_copied(hub: type[Hub], bard_home: Path) -> None:
    output = bard_home.parent / "copy"
    assert copy("hf://o/open", str(output), include=("*.json",)).files == 1
    assert copy("hf://o/open", str(output), include=("sub",)).files == 1
    assert copy("hf://o/open", str(output), exclude=("sub", "*.txt")).files == 1
    with pytest.raises(SourceError, match="nothing to copy below hf://o/open that --include and --exclude choose"):
        copy("hf://o/open", str(output), include=("nothing",))


@pytest.mark.parametrize("fault", ["torn", "spoiled"])
def test_a_cut_or_spoiled_answer_is_brought_again(fault: str, hub: type[Hub], bard_home: Path) -> None:
    setattr(hub, fault, 1)
    copy("hf://o/open", str(bard_home.parent / "copy"), "v1")
    assert (bard_home.parent / "copy" / "sub" / "a.parquet").read_bytes() == BODY and not hub.torn and not hub.spoiled


def test_copies_in_s3_are_told_from_what_else_has_their_names(hub: type[Hub], bard_home: Path, s3_root: str) -> None:
    bucket = s3_root.removeprefix("s3://")
    assert copy("hf://datasets/o/open", f"{s3_root}/copy", "v1").fetched == 2
    assert s3_client().get_object(Bucket=bucket, Key="copy/sub/a.parquet")["Body"].read() == BODY
    s3_client().put_object(Bucket=bucket, Key="copy/config.json", Body=CONFIG[::-1])
    assert copy("hf://datasets/o/open", f"{s3_root}/copy", "v1").fetched == 1
    assert s3_client().get_object(Bucket=bucket, Key="copy/config.json")["Body"].read() == CONFIG
    for again in (2, 0):  # from S3 to a folder, by the checksum that S3 keeps
        assert copy(f"{s3_root}/copy", str(bard_home.parent / "from-s3")).fetched == again
    assert (bard_home.parent / "from-s3" / "sub" / "a.parquet").read_bytes() == BODY
    with pytest.raises(SourceError, match=r"cannot write s3://no-such-bucket/config.json .*see to bucket and credentials"):
        copy("hf://o/open", "s3://no-such-bucket", "v1", include=("config.json",))


def test_gated_and_unknown_ones_say_what_to_do(hub: type[Hub], bard_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"(?s)cannot list hf://o/gated .*accept .* terms .*HF_TOKEN"):
        copy("hf://o/gated", str(bard_home), "v1")
    with pytest.raises(SourceError, match=r"(?s)at revision v2 .*check name and revision"):
        copy("hf://o/open", str(bard_home), "v2")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert copy("hf://o/gated", str(bard_home / "copy"), "v1").files == 2
