"""The claims as a workflow: a task a piece, in rows; one that fails takes along only what needs it, and a new run goes on."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bard_core.findings import spec, work
from bard_core.store import artifacts, storage
from workflows.findings import bard_findings

SHORT = {"steps": 1, "batch_size": 2, "checkpoint_every": 1, "log_every": 1}
BLOCKS = {"base": "lab-blocks", **SHORT}
MODEL = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate_size": 32}
CLAIM = {
    "number": 1,
    "question": "Does four beat eight?",
    "settings": {
        "data.lab.train_images": 8,
        "data.lab.eval_images": 2,
        "source.lab_model": MODEL,
        **{f"source.train.{name}": value for name, value in SHORT.items()},
        "evaluation.speed_samples": 1,
        "evaluation.decoding.max_new_tokens": 8,
        "swd.students": [],
    },
    "variants": {
        "four": {"pbm.stages": [{"block_size": 4, "train": BLOCKS}]},
        "eight": {"pbm.stages": [{"block_size": 8, "train": BLOCKS}]},
    },
    "seeds": [0],
    "thresholds": [0.9],
}


@pytest.mark.slow
def test_a_piece_that_fails_leaves_the_others_and_a_new_run_goes_on(
    bard_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CLAIM))
    monkeypatch.setattr("tasks.finding.read_claims", lambda names: spec.read_claims(names, tmp_path))
    real, done = work._make, list[str]()

    def make(piece: Any, *rest: Any) -> Any:
        if piece.name in unlucky:
            raise RuntimeError("no luck")
        done.append(piece.name)
        return real(piece, *rest)

    unlucky = {"pbm-b8, seed 0"}
    monkeypatch.setattr(work, "_make", make)
    with pytest.raises(Exception, match=r"not done: judge pbm-b8, seed 0, pbm-b8, seed 0; .* A new run goes on"):
        bard_findings(names=["tiny"])
    first = [*done]
    assert "judge pbm-b4, seed 0" in first
    unlucky.clear()
    report = bard_findings(names=["tiny"])
    assert done[len(first) :] == ["pbm-b8, seed 0", "judge pbm-b8, seed 0"], "nothing is done twice"
    page = storage.read_bytes(report.markdown).decode()
    assert "Does four beat eight?" in page
    assert artifacts.verify(report.uri).digest == report.manifest_sha256
    assert bard_findings(names=["tiny"]) == report
