"""A claim from its file to the page: pieces shared and done once, judged as the pipeline judges, told with what lacks."""

import json
from pathlib import Path
from typing import Any

import pytest

from bard_core.findings import judge as judging
from bard_core.findings import pool, work
from bard_core.findings.page import write_page
from bard_core.findings.pieces import distinct, recipe, recipes
from bard_core.findings.results import write_results

from .tiny import AT, BLOCKS, tiny_claim


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A home in which one seed of the tiny claim was run whole."""
    folder = tmp_path_factory.mktemp("findings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARD_HOME", str(folder))
        failed = pool.run_all(distinct(recipes([tiny_claim()], seeds=[0])), processes=1)
        assert failed == {}
        yield folder


@pytest.fixture
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BARD_HOME", str(home))
    return home


def test_what_variants_share_is_one_piece_and_seeds_share_the_data_alone() -> None:
    claim = tiny_claim()
    four, both, other = recipe(claim, "four", 0), recipe(claim, "both", 0), recipe(claim, "four", 1)
    assert four.trained["source"] == both.trained["source"] != other.trained["source"]
    assert four.judged["source"] == both.judged["source"]
    assert both.trained["pbm-b4"] == both.trained["pbm-b8"] and both.judged["pbm-b4"] != both.judged["pbm-b8"]
    kinds = [type(piece).__name__ for piece in distinct([four, both, other]).values()]
    assert kinds.count("Prepared") == 2, "what is trained on, and the same with validation images held out"
    assert (kinds.count("SourceTraining"), kinds.count("BlockTraining"), kinds.count("Distillation")) == (2, 3, 1)
    renamed = claim.model_copy(update={"name": "renamed", "number": 7})
    assert distinct([recipe(renamed, "four", 0)]).keys() == distinct([four]).keys()


def test_a_stage_on_another_variants_model_is_that_variants_own_next_stage() -> None:
    def stages(*sizes: int) -> dict[str, Any]:
        return {"pbm.stages": [{"block_size": size, "train": BLOCKS} for size in sizes]}

    noisier = {**stages(8), "pbm.noise.min_t": 0.1}
    variants = {"whole": stages(4, 8), "last": stages(8), "noisier": noisier}
    start = {"variant": "whole", "model": "pbm-b4"}
    claim = tiny_claim(variants=variants, parents={"last": start, "noisier": start}, comparisons=[])
    whole, last, other = (recipe(claim, variant, 0) for variant in variants)
    assert last.trained["pbm-b8"] == whole.trained["pbm-b8"] != other.trained["pbm-b8"]
    assert last.judged["pbm-b8"] == whole.judged["pbm-b8"] and "pbm-b4" not in last.trained
    assert distinct([last, whole]).keys() == distinct([whole]).keys()
    trainings = [piece for piece in distinct([whole, other]).values() if type(piece).__name__ == "BlockTraining"]
    assert len(trainings) == 3, "blocks of 4 once"


@pytest.mark.parametrize("key", ["parents", "teachers"])
@pytest.mark.parametrize(
    ("borrowed", "words"),
    [
        ({"four": {"variant": "five", "model": "pbm-b4"}}, "variant 'five' is none of"),
        ({"four": {"variant": "both", "model": "pbm-b4"}, "both": {"variant": "four", "model": "pbm-b4"}}, "borrows itself"),
    ],
)
def test_a_model_is_borrowed_of_a_variant_that_borrows_none(key: str, borrowed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_claim(**{key: borrowed})


def test_a_second_run_computes_nothing(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_make", lambda *_: pytest.fail("a piece was done again"))
    assert pool.run_all(distinct(recipes([tiny_claim()], seeds=[0])), processes=1) == {}


def test_a_model_that_is_gone_is_made_again(there: Path) -> None:
    one = recipe(tiny_claim(), "four", 0)
    pieces = distinct([one])
    training = pieces[one.trained["pbm-b4"]]
    done = work.found(training, AT)
    assert done is not None
    (Path(done["models"]["pbm-b4"]["uri"]) / "config.json").unlink()
    assert work.found(training, AT) is None
    again = work.run(training, pieces)
    assert again["models"] == done["models"], "the same bytes: its checkpoint was there"


def test_models_trained_with_the_leak_say_that_they_decode_without(there: Path) -> None:
    one = recipe(tiny_claim(), "both", 0)
    for name in ("pbm-b8", "swd-b8"):
        done = work.found(distinct([one])[one.trained[name]], AT)
        assert done is not None
        bard = json.loads((Path(done["models"][name]["uri"]) / "config.json").read_text())["bard"]
        assert (bard["block_size"], bard["clean_attention"]) == (8, "block")


def test_a_failed_piece_takes_only_what_needs_it_along(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = work._make

    def make(piece: Any, *rest: Any) -> Any:
        if piece.name.startswith("pbm-b4, "):
            raise RuntimeError("no luck")
        return real(piece, *rest)

    monkeypatch.setattr(work, "_make", make)
    one = recipe(tiny_claim(), "four", 1)
    failed = pool.run_all(distinct([one]), processes=1)
    pieces = distinct([one])
    assert failed == {f"pbm-b4, seed 1 ({one.trained['pbm-b4'][:8]})": "RuntimeError: no luck"}
    assert work.found(pieces[one.judged["source"]], AT) is not None
    assert work.found(pieces[one.judged["pbm-b4"]], AT) is None


def test_results_and_page_tell_numbers_and_what_was_not_run(there: Path, tmp_path: Path) -> None:
    (body,) = write_results([tiny_claim()], tmp_path / "results")
    assert body == json.loads((tmp_path / "results" / "tiny.json").read_text())
    first, second = body["comparisons"]
    assert body["verdict"] == first["verdict"] == "inconclusive", "one seed shows nothing"
    assert set(first["differences"]) == {"0"} and first["low"] is None
    assert second["verdict"] == "not comparable" and second["apart"] == "4 steps against 2"
    assert body["images"] == 4 and body["held_out"] == "validation"
    spent = body["variants"]["both"]["seeds"]["0"]["trained"]
    assert spent["source"]["total_steps"] == 0 and spent["swd-b8"]["total_steps"] == 4
    assert spent["swd-b8"]["flops"] > spent["pbm-b8"]["flops"], "the teacher's forwards count"
    assert "judge pbm-b4, seed 1" in body["variants"]["four"]["missing"]
    page = write_page(tmp_path / "results", tmp_path).read_text()
    assert "| 1 | [Does four beat eight?](#1-tiny) | **inconclusive** (2 of 2 variants not run whole)" in page
    assert "not comparable: 4 steps against 2" in page and "Not run whole: four (seed 1), both (seed 1)." in page
    rows = [line for line in page.splitlines() if "| source | ar |" in line]
    assert len(rows) == 1 and rows[0].startswith("| all | source |"), "both variants' source is one model"
    assert (tmp_path / "findings" / "tiny.png").read_bytes()[1:4] == b"PNG"


def test_points_are_named_by_threshold() -> None:
    assert [judging.point_of(name) for name in (0.9, 0.98, None, "self_speculative")] == [
        "0.9",
        "0.98",
        "self_speculative",
        "self_speculative",
    ]
