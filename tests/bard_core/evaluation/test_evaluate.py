"""evaluate, end to end on untrained models: one artifact whose files, ref and samples agree."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bard_core import artifacts
from bard_core.artifacts import DatasetRef, ModelRef
from bard_core.config import DecodingConfig, EvaluationConfig
from bard_core.evaluation import evaluate
from bard_core.evaluation.compare import load_samples
from bard_core.evaluation.suites import SuiteError, prepare_suite

CONFIG = EvaluationConfig(
    decoding=DecodingConfig(max_new_tokens=8), batch_size=4, max_samples=6, speed_samples=2, sweep_thresholds=(0.3,)
)


@pytest.mark.slow
def test_source_and_checkpoint_are_judged_by_the_same_suite(
    make_model: Callable[..., ModelRef], dataset: DatasetRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model = make_model(tmp_path / "source", 1), make_model(tmp_path / "b4", 4)
    base = evaluate(source, source, dataset, CONFIG, str(tmp_path / "judged-source"))
    result = evaluate(model, source, dataset, CONFIG, str(tmp_path / "judged-b4"))

    assert capsys.readouterr().out == ""
    assert base.suite_digest == result.suite_digest
    assert (base.speedup, base.tokens_per_forward) == (1.0, 1.0)
    assert base.tokens_per_s == base.ar_tokens_per_s > 0
    assert result.speedup == pytest.approx(result.tokens_per_s / result.ar_tokens_per_s)

    assert [p.confidence_threshold for p in result.sweep] == [0.3, 0.9] and base.sweep == ()
    chosen = result.sweep[1]
    for name in ("accuracy", "tokens_per_forward", "tokens_per_s", "speedup"):
        assert getattr(chosen, name) == getattr(result, name)
    assert result.sweep[0].tokens_per_forward >= chosen.tokens_per_forward

    manifest = artifacts.verify(result.uri)
    assert (manifest.kind, manifest.digest, manifest.parent_digest) == ("evaluation", result.key, model.key)
    body = json.loads((tmp_path / "judged-b4" / "results.json").read_text())
    for name in ("suite", "suite_digest", "accuracy", "accuracy_stderr", "num_samples", "tokens_per_forward"):
        assert body[name] == getattr(result, name)
    assert body["speed"]["speedup"] == result.speedup
    assert (body["decoding"]["mode"], body["decoding"]["max_new_tokens"]) == ("block", 8)

    samples = load_samples(result)
    assert len(samples) == result.num_samples == 6
    assert sum(sample["exact"] for sample in samples) / 6 == result.accuracy
    forwards = sum(sample["forwards"] for sample in samples)
    assert sum(sample["real_tokens"] for sample in samples) / forwards == result.tokens_per_forward


def test_new_weights_at_an_old_path_are_judged_anew(
    make_model: Callable[..., ModelRef], dataset: DatasetRef, tmp_path: Path
) -> None:
    source = make_model(tmp_path / "source", 1)
    first = evaluate(make_model(tmp_path / "b4", 4, seed=0), source, dataset, CONFIG, str(tmp_path / "first"))
    second = evaluate(make_model(tmp_path / "b4", 4, seed=1), source, dataset, CONFIG, str(tmp_path / "second"))
    assert [s["id"] for s in load_samples(first)] == [s["id"] for s in load_samples(second)]
    assert [s["text"] for s in load_samples(first)] != [s["text"] for s in load_samples(second)]


def test_a_suite_that_cannot_run_says_why(dataset: DatasetRef, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"no suite 'lap'; there are: lab"):
        prepare_suite("lap", Path(dataset.uri), dataset.key, tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SuiteError, match="no eval/"):
        prepare_suite("lab", tmp_path / "empty", "0", tmp_path / "b")


def test_a_suite_of_other_data_is_another_suite(dataset: DatasetRef, tmp_path: Path) -> None:
    digests = [prepare_suite("lab", Path(dataset.uri), data, tmp_path / folder).digest for data, folder in ("1a", "1b", "2c")]
    assert digests[0] == digests[1] != digests[2]
