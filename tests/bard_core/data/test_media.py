"""Rows that name their images: read below one root that no path may leave; another image makes another unit."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bard_core.config.sections.data import DataConfig
from bard_core.config.sources import RawSource
from bard_core.data.prepare import prepare
from bard_core.store import storage


@pytest.fixture(autouse=True)
def _home(bard_home: Path) -> None:
    pass


def picture(folder: Path, name: str, shade: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), (shade, 0, 0)).save(buffer, format="PNG")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(buffer.getvalue())


def row(image: Any, question: str = "Q") -> dict[str, Any]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]}


def prepared(folder: Path, rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """The card of a dataset of these rows."""
    (folder / "raw").mkdir(exist_ok=True)
    (folder / "raw" / "chat.json").write_text(json.dumps(rows))
    source = RawSource(name="chat", schema_name="messages", uri=str(folder / "raw"), **options)
    prepare(DataConfig(sources=(source,), eval_fraction=0.0, max_refused=1.0), str(folder / "out"))
    card: dict[str, Any] = json.loads((folder / "out" / "card.json").read_text())
    return card


@pytest.mark.parametrize("rooted", [False, True])
def test_paths_are_relative_to_the_root_or_the_shard(tmp_path: Path, rooted: bool) -> None:
    picture(tmp_path / ("media" if rooted else "raw"), "FineVision/images/a.png", 7)
    card = prepared(tmp_path, [row("FineVision/images/a.png")], **({"root": str(tmp_path / "media")} if rooted else {}))
    assert card["samples"]["train"] == 1 and card["refused"] == {}


def test_no_path_leaves_the_root_and_a_missing_file_is_refused(tmp_path: Path) -> None:
    picture(tmp_path, "secret.png", 1)
    picture(tmp_path / "raw", "inside.png", 2)
    (tmp_path / "raw" / "link.png").symlink_to(tmp_path / "secret.png")
    absolute = str(tmp_path / "secret.png")
    outside = ["../secret.png", absolute, "a/../../secret.png", "link.png", "file:///etc/passwd", "..\\secret.png", "x\0y.png"]
    card = prepared(tmp_path, [row(path, f"Q{path}") for path in [*outside, "missing.png", "inside.png"]])
    assert card["refused"] == {"image file missing": 1, "path leads out of the root": 7} and card["samples"]["train"] == 1


def test_a_changed_image_makes_another_unit(tmp_path: Path) -> None:
    picture(tmp_path / "raw", "a.png", 7)
    prepared(tmp_path, [row("a.png")])
    before = {path.name for path in (tmp_path / "units").iterdir()}
    prepared(tmp_path, [row("a.png")])
    assert {path.name for path in (tmp_path / "units").iterdir()} == before
    picture(tmp_path / "raw", "a.png", 8)
    prepared(tmp_path, [row("a.png")])
    assert len({path.name for path in (tmp_path / "units").iterdir()}) == 2


def test_images_in_a_bucket(tmp_path: Path, s3_root: str) -> None:
    picture(tmp_path, "a.png", 7)
    storage.write_bytes(f"{s3_root}/media/a.png", (tmp_path / "a.png").read_bytes())
    card = prepared(tmp_path, [row("a.png"), row("b.png", "other")], root=f"{s3_root}/media")
    assert card["samples"]["train"] == 1 and card["refused"] == {"image file missing": 1}


def test_raw_shards_and_dataset_in_a_bucket(tmp_path: Path, s3_root: str) -> None:
    """The same artifact, digest for digest, wherever raw data, units and dataset are."""
    texts = [{"texts": [{"user": f"Q{i}", "assistant": "A"}]} for i in range(20)]
    (tmp_path / "raw").mkdir()
    refs = []
    for place in (str(tmp_path), s3_root):
        lines = "\n".join(map(json.dumps, texts)).encode()
        storage.write_bytes(f"{place}/raw/0.jsonl", lines)
        source = RawSource(name="s", schema_name="finevision", uri=f"{place}/raw")
        refs.append(prepare(DataConfig(sources=(source,)), f"{place}/data/out"))
    local, remote = refs
    units = storage.list_files(f"{s3_root}/data/units")
    assert units and units == storage.list_files(str(tmp_path / "data" / "units"))
    names = ("index.arrow", "units.json")
    for name in names:
        assert storage.read_bytes(f"{s3_root}/data/out/{name}") == storage.read_bytes(f"{tmp_path}/data/out/{name}")
    assert (local.num_train, local.num_eval) == (remote.num_train, remote.num_eval)
