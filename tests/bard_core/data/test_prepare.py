"""prepare, end to end: raw shards to a verified dataset; nothing leaks or vanishes, one config gives one set of bytes."""

import hashlib
import io
import json
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import AutoProcessor

from bard_core import processes
from bard_core.config.sections.data import DataConfig, LabWorldConfig
from bard_core.config.sources import RawSource
from bard_core.data.heldout import held_out
from bard_core.data.index import Index
from bard_core.data.prepare import PrepareError, make_units, plan_jobs, prepare
from bard_core.data.reader import Reader
from bard_core.store import artifacts, storage, workshop
from bard_core.store.refs import UnitsRef

LAB = DataConfig(lab=LabWorldConfig(train_images=30, eval_images=10))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARD_HOME", str(tmp_path / "home"))


def rows_of(folder: Path, keep: Any = None) -> list[dict[str, Any]]:
    """Rows of all units with their index entries, read as anybody can; ``keep``: a split, kept rows only."""
    index = Index.open(folder)
    rows = []
    for unit in index.units:
        place = folder.parent / "units" / unit.name
        assert artifacts.verify(str(place)).digest == unit.manifest_sha256
        rows += datasets.Dataset.from_file(str(place / "rows.arrow")).to_list()
    both = [row | entry for row, entry in zip(rows, index.table.to_pylist(), strict=True)]
    return [row for row in both if keep is None or (row["keep"] and row["split"] == keep)]


def images_of(rows: list[dict[str, Any]]) -> set[str]:
    return {hashlib.sha256(data).hexdigest() for row in rows for data in row["images"]}


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), (shade, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def raw(folder: Path, samples: list[list[int | None]], name: str = "raw", shards: int = 1, **options: Any) -> RawSource:
    """FineVision shards with one row for each list of image shades; None is an image without bytes."""
    folder.mkdir(parents=True)
    rows = [
        {
            "images": [{"bytes": None if shade is None else png(shade), "path": "x"} for shade in shades],
            "texts": [{"user": f"Question {index}", "assistant": "Answer"}],
        }
        for index, shades in enumerate(samples)
    ]
    for shard in range(shards):
        pq.write_table(pa.Table.from_pylist(rows[shard::shards]), folder / f"{shard}.parquet")
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
    texts = [tokenizer.decode(row["input_ids"]) for row in rows_of(tmp_path / "out")]
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
    train, evaluated = rows_of(folder, 0), rows_of(folder, 1)
    assert (len(train), len(evaluated)) == (ref.num_train, ref.num_eval) == (30, 10)
    assert not images_of(train) & images_of(evaluated)
    assert len({row["id"] for row in train + evaluated}) == 40
    tokenizer = AutoProcessor.from_pretrained(folder / "processor").tokenizer
    for row in train + evaluated:
        answers = [message["content"][0]["text"] for message in json.loads(row["messages"]) if message["role"] == "assistant"]
        assert [tokenizer.decode(row["input_ids"][start:end]) for start, end in row["turns"]] == [
            f"{a}<|im_end|>" for a in answers
        ]
        assert row["tokens"] == len(row["input_ids"]) and row["visual_tokens"] == row["num_visual_tokens"] == 9
        assert row["turn_lengths"] == [end - start for start, end in row["turns"]] and row["answer"] == answers[-1]
        assert row["image_hashes"] == [hashlib.blake2b(data, digest_size=16).digest() for data in row["images"]]
    card = json.loads((folder / "card.json").read_text())
    assert card["samples"] == {"train": 30, "eval": 10} and card["refused"] == {}
    assert card["lengths"]["train"]["tokens"]["total"] == sum(row["tokens"] for row in train)
    assert "lab-train-finevision" in (folder / "card.html").read_text() and card["examples"][0]["pictures"]


def test_of_a_conversation_the_last_answer_alone_may_be_learned(tmp_path: Path) -> None:
    talks = DataConfig(lab=LabWorldConfig(train_images=9, eval_images=3, turns_per_image=3))
    every, last = (prepare(talks.model_copy(update={"learned": how}), str(tmp_path / how)) for how in ("all", "last"))
    assert len({every.key, last.key}) == 2
    for one, other in zip(Reader(every, "train"), Reader(last, "train"), strict=True):
        assert (one.id, one.turns, one.context) == (other.id, other.turns, 0) and other.context == len(other.turns) - 1
    assert {example.context for example in Reader(last, "train")} == {0, 2}
    counted = [json.loads((tmp_path / how / "card.json").read_text())["lengths"]["train"] for how in ("all", "last")]
    assert counted[0]["tokens"] == counted[1]["tokens"]
    ends = [example.turns[-1] for example in Reader(every, "train")]
    assert counted[1]["supervised_tokens"]["total"] == sum(end - start for start, end in ends)


def test_held_out_samples_come_whole_and_by_id(tmp_path: Path) -> None:
    ref = prepare(LAB, str(tmp_path / "out"))
    rows = list(held_out(ref))
    expected = rows_of(tmp_path / "out", 1)
    assert [row["id"] for row in rows] == [row["id"] for row in expected] and rows[3]["images"] == expected[3]["images"]
    assert list(held_out(ref, {rows[7]["id"], rows[2]["id"], "unknown"})) == [rows[2], rows[7]]


def test_the_same_rows_give_the_same_artifact_whoever_prepares_them_where(tmp_path: Path) -> None:
    samples: list[list[int | None]] = [[shade] for shade in range(40)]
    first = raw(tmp_path / "raw", samples, shards=7)
    ref = prepare(DataConfig(sources=(first,)), str(tmp_path / "a" / "out"), processes=1)
    shutil.copytree(tmp_path / "raw", tmp_path / "elsewhere")
    moved = first.model_copy(update={"uri": str(tmp_path / "elsewhere")})
    again = prepare(DataConfig(sources=(moved,)), str(tmp_path / "b" / "out"), processes=2)
    assert ref.manifest_sha256 == again.manifest_sha256 and ref.num_train + ref.num_eval == 40
    assert {p.name for p in (tmp_path / "a" / "units").iterdir()} == {p.name for p in (tmp_path / "b" / "units").iterdir()}


def test_finished_units_stay_and_a_changed_shard_is_prepared_alone(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", [[shade] for shade in range(12)], shards=3)
    config = DataConfig(sources=(source,))
    prepare(config, str(tmp_path / "out"))
    units = tmp_path / "units"
    before = {path.name: path.stat().st_mtime_ns for path in units.glob("*/manifest.json")}
    stamps = {path.parent.name: path.stat().st_mtime_ns for path in units.glob("*/manifest.json")}
    (units / sorted(stamps)[0] / "rows.arrow").write_bytes(b"torn")
    table = pq.read_table(tmp_path / "raw" / "1.parquet")
    pq.write_table(table.slice(0, 2), tmp_path / "raw" / "1.parquet")
    ref = prepare(config, str(tmp_path / "out"))
    after = {path.parent.name: path.stat().st_mtime_ns for path in units.glob("*/manifest.json")}
    assert (units / f"{sorted(stamps)[0]}.damaged" / "rows.arrow").read_bytes() == b"torn", "set aside"
    del after[f"{sorted(stamps)[0]}.damaged"]
    assert before and len(after) == 4  # the changed shard's new unit beside its old one
    kept = [name for name in stamps if after[name] == stamps[name]]
    assert len(kept) == 2 and sorted(stamps)[0] not in kept  # the torn one was made again
    assert ref.num_train + ref.num_eval == 10


def test_shards_that_changed_between_tasks_are_told_and_prepared_again(tmp_path: Path) -> None:
    config = DataConfig(sources=(raw(tmp_path / "raw", [[shade] for shade in range(12)], shards=3),))
    out = str(tmp_path / "out")
    with workshop.scratch("prepare") as scratch:
        made = [UnitsRef(group=0, of=1, units=tuple(make_units(plan_jobs(config, out, scratch), 1)))]
    shutil.copy(tmp_path / "raw" / "0.parquet", tmp_path / "raw" / "3.parquet")
    with pytest.raises(PrepareError, match="units of 3 shards were made, but there are 4 now: prepare again"):
        prepare(config, out, made=made)
    assert prepare(config, out).epoch_samples == 12, "the copies are left out"


@pytest.mark.parametrize("room_for", [1, 0])
def test_a_pool_that_is_killed_goes_on_with_fewer_processes(
    room_for: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the kernel's out-of-memory killer would, while more processes run than there is memory for."""
    config = DataConfig(sources=(raw(tmp_path / "raw", [[shade] for shade in range(12)], shards=3),))

    class Pool(ProcessPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            full = self._max_workers > room_for
            return super().submit(signal.raise_signal, signal.SIGKILL) if full else super().submit(*args, **kwargs)

    monkeypatch.setattr(processes, "ProcessPoolExecutor", Pool)
    if room_for:
        assert prepare(config, str(tmp_path / "out"), processes=3).epoch_samples == 12
    else:
        with pytest.raises(PrepareError, match=r"0\.parquet: a process was killed over it .*take that file away"):
            prepare(config, str(tmp_path / "out"), processes=3)
        (tmp_path / "raw" / "0.parquet").unlink()
        monkeypatch.undo()
        monkeypatch.setenv("BARD_HOME", str(tmp_path / "home"))
        assert prepare(config, str(tmp_path / "out")).epoch_samples == 8
    assert "Going on with 1, finished units stay" in caplog.text


def test_a_pool_that_breaks_while_shards_are_handed_out_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(sources=(raw(tmp_path / "raw", [[shade] for shade in range(12)], shards=3),))

    class Pool(ProcessPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            if self._max_workers == 1:
                return super().submit(*args, **kwargs)
            killed = super().submit(signal.raise_signal, signal.SIGKILL)
            killed.exception()  # waits: the next finds the pool broken
            return killed

    monkeypatch.setattr(processes, "ProcessPoolExecutor", Pool)
    assert prepare(config, str(tmp_path / "out"), processes=3).epoch_samples == 12


def test_images_decide_the_split_and_bad_rows_are_counted_and_quarantined(tmp_path: Path) -> None:
    samples: list[list[int | None]] = [[shade % 100] for shade in range(200)]  # every image occurs in two rows
    mixed: list[list[int | None]] = [[shade, shade + 1] for shade in range(60)]
    source = raw(tmp_path / "raw", [*samples, *mixed, [None], []])
    ref = prepare(DataConfig(sources=(source,), eval_fraction=0.3), str(tmp_path / "out"))
    folder = tmp_path / "out"
    train, evaluated = rows_of(folder, 0), rows_of(folder, 1)
    assert evaluated and not images_of(train) & images_of(evaluated)
    card = json.loads((folder / "card.json").read_text())
    assert set(card["left_out"]) == {"images on both sides of the split"} and card["refused"] == {"image bytes missing": 1}
    assert ref.num_train + ref.num_eval + card["left_out"]["images on both sides of the split"] + 1 == 262
    (quarantine,) = (tmp_path / "units").glob("*/quarantine.jsonl")
    assert [json.loads(line) for line in quarantine.read_text().splitlines()] == [
        {"id": "raw/0/260", "reason": "image bytes missing", "detail": "only a path: 'x'"}
    ]


def test_too_many_refusals_fail_with_their_reasons_and_enough_good_rows_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = raw(tmp_path / "raw", [*([[1]] * 10), *([[None]] * 190)])
    with pytest.raises(PrepareError, match=r"190 of 200 rows were refused: .'image bytes missing': 190.*max_refused is 5%"):
        prepare(DataConfig(sources=(source,)), str(tmp_path / "out"))
    assert "raw: kept 10 of 200; 190: image bytes missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert prepare(DataConfig(sources=(source,), max_refused=0.95), str(tmp_path / "out")).num_train == 10


def test_one_bad_shard_among_many_is_refused_alone(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", [[shade] for shade in range(40)], shards=4)
    (tmp_path / "raw" / "2.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(PrepareError, match="1 of 4 shards"):
        prepare(DataConfig(sources=(source,)), str(tmp_path / "out"))
    ref = prepare(DataConfig(sources=(source,), max_refused=0.25), str(tmp_path / "out"))
    assert ref.num_train + ref.num_eval == 30
    assert "magic bytes" in json.loads((tmp_path / "out" / "card.json").read_text())["sources"]["raw"]["damaged"]["2"]


def test_nothing_left_to_train_on_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", [[None], [None]])
    with pytest.raises(PrepareError, match="'image bytes missing': 2"):
        prepare(DataConfig(sources=(source,), max_refused=1.0), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", [[1]])
    with pytest.raises(ValueError, match=r"two entries of data.sources have the name 'raw'"):
        DataConfig(sources=(source, source))


def test_a_sample_of_a_source_is_exact_seeded_and_not_its_first_rows(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", [[1]] * 200, shards=3, max_samples=50)
    config = DataConfig(sources=(source,), eval_fraction=0.0)
    ref = prepare(config, str(tmp_path / "out"))
    numbers = [int(row["messages"].split("Question ")[1].split('"')[0]) for row in rows_of(tmp_path / "out")]
    assert ref.num_train == len(numbers) == 50 and max(numbers) > 150
    other = prepare(config.model_copy(update={"seed": 1}), str(tmp_path / "other" / "out"))
    assert other.num_train == 50 and other.manifest_sha256 != ref.manifest_sha256


def test_the_processor_is_part_of_a_units_key_and_limits_are_obeyed(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", [[1]])
    names = []
    for options in ({}, {"max_tokens": 100}, {"max_answer_tokens": 50}, {"max_pixels": 1024}):
        prepare(DataConfig(sources=(source,), eval_fraction=0.0, **options), str(tmp_path / "out"))
        names.append({path.name for path in (tmp_path / "units").iterdir()})
    assert [len(found) for found in names] == [1, 2, 3, 4]
    with pytest.raises(PrepareError, match="first turn too long"):
        prepare(DataConfig(sources=(source,), eval_fraction=0.0, max_answer_tokens=2), str(tmp_path / "out"))


def test_an_epoch_has_each_sample_as_often_as_its_weight_says(tmp_path: Path) -> None:
    twice = raw(tmp_path / "a", [[shade] for shade in range(0, 40)], name="twice", weight=2.0, license="MIT")
    half = raw(tmp_path / "b", [[shade] for shade in range(100, 200)], name="half", weight=0.5)
    ref = prepare(DataConfig(sources=(twice, half), eval_fraction=0.0), str(tmp_path / "out"))
    kept = ref.num_train - 40
    assert ref.epoch_samples == 80 + kept and 30 < kept < 70
    assert artifacts.read_manifest(ref.uri).metadata["epoch_samples"] == ref.epoch_samples


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    prepare(LAB, str(tmp_path / "out"))
    assert not any((storage.home() / "staging").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"home", "out", "units"}
