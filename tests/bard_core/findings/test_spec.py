"""A claim's file: what cannot be answered is refused, and named."""

import json
from pathlib import Path
from typing import Any

import pytest

from bard_core.config.bases import CONFIGS
from bard_core.findings.pieces import distinct, recipes
from bard_core.findings.spec import ClaimError, read_claim, read_claims

from .tiny import BLOCKS, tiny_claim


def test_every_claim_of_ours_can_be_run() -> None:
    claims = read_claims()
    assert {"progressive", "elastic"} <= {claim.name for claim in claims}
    assert all(len(claim.seeds) >= 3 and claim.held_out == "validation" for claim in claims if claim.comparisons)
    long = [piece for piece in distinct(recipes(claims)).values() if piece.cost > 3000]
    assert {piece.name.partition(",")[0] for piece in long} <= {"source"}, "a piece is a quarter of an hour at most"
    assert all(piece.source.train.checkpoint_every <= 500 for piece in long), "or goes on from a few minutes before"


def asked(**side: Any) -> list[dict[str, Any]]:
    return [{"question": "?", "candidate": {"model": "pbm-b4", **side}, "baseline": {"variant": "four", "model": "pbm-b4"}}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"comparisons": asked(variant="five")}, "variant 'five' is none of"),
        ({"comparisons": asked(variant="four", threshold=0.5)}, "threshold 0.5 is none of"),
        ({"models": ["swd-b8"]}, "pbm-b4 is not among models"),
        ({"comparisons": [{**asked(variant="four")[0], "equal": "forwards", "metric": "speedup"}]}, "at equal forwards accuracy"),
        ({"variant": {}}, "did you mean 'variants'"),
    ],
)
def test_a_claim_that_cannot_be_answered_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_claim(**changes)


def test_a_file_s_faults_name_it(tmp_path: Path) -> None:
    body = tiny_claim().model_dump(mode="json", exclude={"name"})
    body["variants"]["four"]["pbm.noize.min_t"] = 0.2
    path = tmp_path / "broken.yaml"
    path.write_text(json.dumps(body))
    with pytest.raises(ClaimError, match=r"variant four: .*did you mean 'noise'"):
        read_claim(path)
    body["variants"]["four"] = {"pbm.stages": [{"block_size": 16, "train": BLOCKS}]}
    path.write_text(json.dumps(body))
    with pytest.raises(ClaimError, match="variant four trains pbm-b16, not pbm-b4"):
        read_claim(path)
    body["comparisons"], body["parents"] = [], {"both": {"variant": "four", "model": "pbm-b4"}}
    path.write_text(json.dumps(body))
    with pytest.raises(ClaimError, match="variant four trains pbm-b16, not pbm-b4"):
        read_claim(path)
    with pytest.raises(ClaimError, match="no claim 'nothing'"):
        read_claims(["nothing"])
    assert (CONFIGS / "findings").is_dir()
