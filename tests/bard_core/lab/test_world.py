"""The lab world: reproducible bytes, true answers, fixed widths, the three public schemas, disjoint splits."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bard_core.config.sections.data import LabWorldConfig
from bard_core.lab import world

SMALL = LabWorldConfig(train_images=20, eval_images=10)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def test_one_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        world.write_raw(SMALL.model_copy(update={"seed": seed}), tmp_path / name)
    first, again, other = (_files(tmp_path / name) for name in "abc")
    assert len(first) == 6
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_shards_have_the_public_schemas_and_shares(tmp_path: Path) -> None:
    sources = world.write_raw(SMALL, tmp_path)
    tables = {source.schema_name: pq.read_table(source.uri) for source in sources["train"]}
    assert {name: table.num_rows for name, table in tables.items()} == {"finevision": 8, "llava_onevision": 8, "mmfinereason": 4}
    fine, llava, reason = (tables[name].to_pylist()[0] for name in tables)
    assert set(fine) == {"images", "texts"} and set(fine["images"][0]) == {"bytes", "path"}
    assert len(fine["texts"]) == SMALL.turns_per_image and set(fine["texts"][0]) == {"user", "assistant"}
    assert set(llava) == {"id", "image", "conversations"} and llava["conversations"][0]["value"].startswith("<image>\n")
    assert [turn["from"] for turn in llava["conversations"]][:2] == ["human", "gpt"]
    assert set(reason) == {"question", "image", "qwen3vl_235b_thinking_response", "original_answer"}


def test_answers_list_then_derive_with_a_width_fixed_by_the_number_of_cells() -> None:
    assert world.answer("finevision", list("KBMF"), [7, 2, 4, 9]) == "K=7 B=2 M=4 F=9; sum=22; max=9; min=2"
    assert world.answer("mmfinereason", list("KBM"), [1, 2, 4]) == "<think>K=1 B=2 M=4</think>sum=07; max=4"
    drawn: set[str] = set()
    for schema, row in world.generate(SMALL, "train", set(), drawn):
        if schema == "finevision":
            for turn in row["texts"]:
                listed = dict(re.findall(r"([A-Z])=(\d)", turn["assistant"]))
                assert turn["user"] == f"Read {' '.join(listed)}."
                assert 20 <= len(turn["assistant"]) <= 60
                assert len(turn["assistant"]) == 4 * len(listed) - 1 + len("; sum=00; max=0; min=0")
                assert f"sum={sum(map(int, listed.values())):02d}" in turn["assistant"]
    assert len(drawn) == SMALL.train_images


def test_validation_takes_evaluation_s_place_and_shares_no_image_with_it_or_with_training(tmp_path: Path) -> None:
    tiny = LabWorldConfig(rows=1, columns=1, alphabet=4, min_cells=1, max_cells=1, train_images=50, eval_images=20)
    worlds = {"a": tiny, "b": tiny.model_copy(update={"held_out": "validation"})}
    files = {name: _files(tmp_path / name) for name, one in worlds.items() if world.write_raw(one, tmp_path / name)}
    assert all(files["a"][name] == files["b"][name] for name in files["a"] if name.startswith("train"))

    def images(folder: str) -> set[bytes]:
        tables = [pq.read_table(path).to_pylist() for path in (tmp_path / folder).rglob("*.parquet")]
        return {(row["images"][0] if "images" in row else row["image"])["bytes"] for rows in tables for row in rows}

    train, evaluation, validation = images("a/train"), images("a/eval"), images("b/eval")
    assert len(validation) > 10 and not validation & (train | evaluation)


def test_evaluation_never_repeats_a_training_image_even_in_a_tiny_world() -> None:
    tiny = LabWorldConfig(rows=1, columns=1, min_cells=1, max_cells=1, train_images=900, eval_images=50)
    train: set[str] = set()
    held_out: set[str] = set()
    list(world.generate(tiny, "train", set(), train))
    assert len(list(world.generate(tiny, "eval", train, held_out))) == 50
    assert not train & held_out


def test_a_world_that_is_used_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Everything(set[str]):
        def __contains__(self, item: object) -> bool:
            return True

    monkeypatch.setattr(world, "_MAX_REDRAWS", 3)
    with pytest.raises(ValueError, match=r"fewer data.lab.train_images"):
        list(world.generate(SMALL, "eval", Everything(), set()))
