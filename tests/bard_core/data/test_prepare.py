"""prepare, end to end: raw shards to a verified dataset; nothing leaks or vanishes, one config gives one set of bytes."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import AutoProcessor

from bard_core.config.sections import DataConfig, LabWorldConfig, RawSource
from bard_core.data.prepare import PrepareError, prepare
from bard_core.store import artifacts

LAB = DataConfig(lab=LabWorldConfig(train_images=30, eval_images=10), samples_per_shard=12)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARD_HOME", str(tmp_path / "home"))


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / split).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def images_of(rows: list[dict[str, Any]]) -> set[str]:
    return {hashlib.sha256(data).hexdigest() for row in rows for data in row["images"]}


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), (shade, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def raw(folder: Path, samples: list[list[int | None]], name: str = "raw", **options: Any) -> RawSource:
    """FineVision shards with one row for each list of image shades; None is an image without bytes."""
    folder.mkdir(parents=True)
    rows = [
        {
            "images": [{"bytes": None if shade is None else png(shade), "path": "x"} for shade in shades],
            "texts": [{"user": f"Question {index}", "assistant": "Answer"}],
        }
        for index, shades in enumerate(samples)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")
    return RawSource(name=name, schema_name="finevision", uri=str(folder), **options)


def talk(folder: Path, systems: list[str | None]) -> RawSource:
    """LLaVA-OneVision shards with one text-only row for each system turn; None is a row without one."""
    folder.mkdir(parents=True)
    asked = [{"from": "human", "value": "Question"}, {"from": "gpt", "value": "Answer"}]
    rows = [
        {"id": str(i), "conversations": [*([] if system is None else [{"from": "system", "value": system}]), *asked]}
        for i, system in enumerate(systems)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")
    return RawSource(name="talk", schema_name="llava_onevision", uri=str(folder))


@pytest.mark.parametrize(("prompt", "led"), [("Be brief.", "Be brief."), ("", ""), (None, None)])
def test_samples_without_a_system_turn_get_the_configured_one(prompt: str | None, led: str | None, tmp_path: Path) -> None:
    source = talk(tmp_path / "raw", [None, "Be long.", ""])
    ref = prepare(DataConfig(sources=(source,), system_prompt=prompt, eval_fraction=0.0), str(tmp_path / "out"))
    assert ref.system_prompt == prompt
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "out" / "processor").tokenizer
    texts = [tokenizer.decode(row["input_ids"]) for row in rows_of(tmp_path / "out", "train")]
    starts = ["" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n" for system in (led, "Be long.", "")]
    body = "<|im_start|>user\nQuestion<|im_end|>\n<|im_start|>assistant\nAnswer<|im_end|>\n"
    assert texts == [f"{start}{body}" for start in starts], "an own system turn wins, also an empty one"
    other = prepare(DataConfig(sources=(source,), system_prompt="Other.", eval_fraction=0.0), str(tmp_path / "other"))
    assert other.key != ref.key


def test_the_lab_becomes_a_verified_dataset(tmp_path: Path) -> None:
    ref = prepare(LAB, str(tmp_path / "out"))
    manifest = artifacts.verify(ref.uri)
    assert (manifest.kind, manifest.digest) == ("dataset", ref.manifest_sha256)
    folder = tmp_path / "out"
    train, held_out = rows_of(folder, "train"), rows_of(folder, "eval")
    assert (len(train), len(held_out)) == (ref.num_train, ref.num_eval) == (30, 10)
    assert len(list((folder / "train").glob("*.parquet"))) == 3
    assert not images_of(train) & images_of(held_out)
    assert len({row["id"] for row in train + held_out}) == 40
    tokenizer = AutoProcessor.from_pretrained(folder / "processor").tokenizer
    for row in train + held_out:
        answers = [message["content"][0]["text"] for message in json.loads(row["messages"]) if message["role"] == "assistant"]
        assert [tokenizer.decode(row["input_ids"][start:end]) for start, end in row["turns"]] == [
            f"{a}<|im_end|>" for a in answers
        ]
        assert row["num_tokens"] == len(row["input_ids"]) and row["num_visual_tokens"] == 9
        assert row.get("answer", answers[-1]) == answers[-1]
    report = json.loads((folder / "data_report.json").read_text())
    assert report["train"]["samples"] == 30 and report["refused"] == {} and report["leakage"]["images_in_both"] == 0
    assert report["train"]["lengths"]["num_tokens"]["total"] == sum(row["num_tokens"] for row in train)


def test_the_same_config_gives_the_same_artifact(tmp_path: Path) -> None:
    first, again = (prepare(LAB, str(tmp_path / name)) for name in "ab")
    assert first.manifest_sha256 == again.manifest_sha256


def test_images_decide_the_split_and_bad_rows_are_counted_and_quarantined(tmp_path: Path) -> None:
    samples: list[list[int | None]] = [[shade % 100] for shade in range(200)]  # every image occurs in two rows
    mixed: list[list[int | None]] = [[shade, shade + 1] for shade in range(60)]
    source = raw(tmp_path / "raw", [*samples, *mixed, [None], []])
    ref = prepare(DataConfig(sources=(source,), eval_fraction=0.3), str(tmp_path / "out"))
    folder = tmp_path / "out"
    train, held_out = rows_of(folder, "train"), rows_of(folder, "eval")
    assert held_out and not images_of(train) & images_of(held_out)
    report = json.loads((folder / "data_report.json").read_text())
    assert set(report["refused"]) == {"images on both sides of the split", "image bytes missing"}
    assert ref.num_train + ref.num_eval + sum(report["refused"].values()) == report["sources"]["raw"]["rows"] == 262
    quarantine = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert len(quarantine) == sum(report["refused"].values())
    assert {"id": "raw/0/260", "source": "raw", "reason": "image bytes missing", "detail": "got NoneType"} in quarantine


def test_nothing_left_to_train_on_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", [[None], [None]])
    with pytest.raises(PrepareError, match="'image bytes missing': 2"):
        prepare(DataConfig(sources=(source,)), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", [[1]])
    with pytest.raises(PrepareError, match="name raw is used twice"):
        prepare(DataConfig(sources=(source, source)), str(tmp_path / "out"))
