"""Comparison: numbers that can be checked by hand."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from bard_core.evaluation.compare import ComparisonError, load_samples, on_frontier, paired, sign_test, source_of, standard_error
from bard_core.store import artifacts
from bard_core.store.refs import EvalResult, ModelRef


def records(scores: list[float]) -> list[dict[str, Any]]:
    return [{"doc_id": i, "reference": "x", "exact": score} for i, score in enumerate(scores)]


def result(name: str, accuracy: float, speedup: float, stage: str = "pbm") -> EvalResult:
    model = ModelRef(uri=name, manifest_sha256=name, stage=stage, block_size=4, parent_sha256=None)
    return EvalResult(
        uri=name, manifest_sha256=name, model=model, suite="lab", suite_digest="0", accuracy=accuracy, accuracy_stderr=0.01,
        num_samples=9, tokens_per_forward=speedup, tokens_per_s=10 * speedup, ar_tokens_per_s=10.0, speedup=speedup,
    )  # fmt: skip


RESULTS = [
    result("source", 0.90, 1.0, "source"),
    result("slow-and-good", 0.92, 1.5),
    result("equal", 0.90, 2.0),
    result("close", 0.88, 3.0),
    result("beaten", 0.60, 2.5),
    result("fast", 0.70, 5.0),
]


def test_paired_differences_by_hand() -> None:
    found = paired(records([1, 1, 1, 0, 0, 1]), list(reversed(records([1, 1, 0, 1, 1, 1]))), "exact")
    assert (found.wins, found.losses, found.num_samples) == (2, 1, 6)
    assert found.difference == pytest.approx(1 / 6)
    assert found.stderr == pytest.approx(math.sqrt((3 - 1 / 6) / 5 / 6))
    assert found.p_value == 1.0
    assert found.smallest_detectable == 1.0  # six samples see nothing less than everything


def test_equal_answers_still_leave_a_smallest_detectable_difference() -> None:
    found = paired(records([1.0] * 300), records([1.0] * 300), "exact")
    assert (found.difference, found.stderr, found.p_value) == (0.0, 0.0, 1.0)
    assert found.smallest_detectable == pytest.approx(6 / 300)


def test_the_sign_test_is_exact_and_large_counts_do_not_overflow() -> None:
    assert sign_test(6, 0) == pytest.approx(2 / 64)
    assert sign_test(1, 4) == pytest.approx(2 * (1 + 5) / 32)
    assert sign_test(0, 0) == 1.0
    assert sign_test(5000, 5000) == pytest.approx(1.0)
    assert 0 < sign_test(4800, 5200) < 1e-4


def test_only_the_same_samples_are_compared() -> None:
    with pytest.raises(ComparisonError, match="max_samples"):
        paired(records([1, 0]), records([1, 0, 1]), "exact")
    with pytest.raises(ComparisonError, match="0 samples"):
        paired([], [], "exact")
    with pytest.raises(ComparisonError, match="'fields'"):
        paired(records([1]), records([1]), "fields")


def test_documents_are_counted_once_each_by_their_number() -> None:
    """Two documents with one id and one reference, as in benchmarks whose ids name an image, are two samples."""
    twins = [{"benchmark": "b", "doc_id": i, "id": "one", "reference": "yes", "score": float(i == 0)} for i in range(2)]
    found = paired(twins, [{**record, "score": 1.0} for record in twins])
    assert (found.num_samples, found.wins, found.difference) == (2, 1, 0.5)
    with pytest.raises(ComparisonError, match="1 documents have other references, first document 1 of benchmark 'b'"):
        paired(twins, [twins[0], {**twins[1], "reference": "no"}])


def test_a_document_judged_twice_names_the_folder_to_remove(bard_home: Path, tmp_path: Path) -> None:
    def judged(records: list[dict[str, Any]]) -> EvalResult:
        (tmp_path / "staging").mkdir()
        (tmp_path / "staging" / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        manifest = artifacts.commit_directory(tmp_path / "staging", str(tmp_path / "judged"), kind="evaluation")
        return RESULTS[0].model_copy(update={"uri": str(tmp_path / "judged"), "manifest_sha256": manifest.digest})

    once = {"benchmark": "b", "doc_id": 0, "reference": "yes", "score": 1.0}
    with pytest.raises(ComparisonError, match="judged: document 0 of benchmark 'b' was judged twice; remove that folder"):
        load_samples(judged([once, once]))
    shutil.rmtree(tmp_path / "judged")
    assert load_samples(judged([once])) == [once]


def test_standard_error_of_right_and_wrong() -> None:
    assert standard_error([1.0, 0.0, 1.0, 0.0]) == pytest.approx(math.sqrt(0.25 * 4 / 3 / 4))
    assert standard_error([1.0]) == 0.0


def test_frontier_keeps_what_no_other_beats() -> None:
    kept = on_frontier([(r.speedup, r.accuracy) for r in RESULTS])
    assert [r.uri for r, best in zip(RESULTS, kept, strict=True) if best] == ["slow-and-good", "equal", "close", "fast"]
    assert on_frontier([(1.0, 0.5), (1.0, 0.5), (1.0, 0.4), (0.9, 0.5)]) == [True, True, False, False], "ties stand together"


def test_there_is_one_source() -> None:
    assert source_of(RESULTS) is RESULTS[0]
    with pytest.raises(ComparisonError, match="exactly one source"):
        source_of(RESULTS[1:])
