"""evaluate, end to end on untrained models: one artifact whose files, ref and samples agree with what lmms-eval wrote."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bard_core.config.sections.evaluation import DecodingConfig, EvaluationConfig
from bard_core.evaluation.benchmark import judge
from bard_core.evaluation.compare import load_samples
from bard_core.evaluation.evaluate import evaluate, load_result
from bard_core.evaluation.suites import suite_of
from bard_core.store import artifacts
from bard_core.store.refs import BenchmarkRef, DatasetRef, ModelRef

CONFIG = EvaluationConfig(
    decoding=DecodingConfig(max_new_tokens=8), batch_size=4, max_samples=6, speed_samples=2, sweep_thresholds=(0.001,)
)
BENCHMARK = suite_of(CONFIG).benchmarks[0]


@pytest.mark.slow
def test_source_and_checkpoint_are_judged_by_the_same_suite(
    make_model: Callable[..., ModelRef], dataset: DatasetRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model = make_model(tmp_path / "source", 1), make_model(tmp_path / "b4", 4)
    base = evaluate(source, source, dataset, CONFIG, str(tmp_path / "judged-source"))
    result = evaluate(model, source, dataset, CONFIG, str(tmp_path / "judged-b4"))

    assert capsys.readouterr().out == ""
    assert base.suite_digest == result.suite_digest and base.complete
    assert (base.speedup, base.tokens_per_forward) == (1.0, 1.0)
    assert base.tokens_per_s == base.ar_tokens_per_s > 0
    assert result.speedup == pytest.approx(result.tokens_per_s / result.ar_tokens_per_s)

    assert [p.confidence_threshold for p in result.sweep] == [0.001, 0.9] and base.sweep == ()
    chosen = result.sweep[1]
    for name in ("accuracy", "tokens_per_forward", "tokens_per_s", "speedup"):
        assert getattr(chosen, name) == getattr(result, name)
    assert result.sweep[0].tokens_per_forward > chosen.tokens_per_forward  # any confidence is enough at 0.001

    manifest = artifacts.verify(result.uri)
    assert (manifest.kind, manifest.digest, manifest.parent_digest) == ("evaluation", result.key, model.key)
    body = json.loads((tmp_path / "judged-b4" / "results.json").read_text())
    for name in ("suite", "suite_digest", "accuracy", "accuracy_stderr", "num_samples", "tokens_per_forward"):
        assert body[name] == getattr(result, name)
    assert body["speed"]["speedup"] == result.speedup
    assert load_result(result.uri, result.key, model) == result
    assert evaluate(model, source, dataset, CONFIG, result.uri) == result, "what was judged is not judged again"
    assert str(tmp_path) not in (tmp_path / "judged-b4" / "results.json").read_text()
    lab = body["details"]["lab"]
    assert (lab["decoding"]["mode"], lab["decoding"]["max_new_tokens"]) == ("block", 8)
    assert lab["score"] == json.loads(result.benchmarks[0].model_dump_json())
    written = json.loads(next((tmp_path / "judged-b4" / "lab").glob("*_results.json")).read_text())
    assert written["results"]["bard_lab"]["exact,none"] == result.accuracy
    assert len(next((tmp_path / "judged-b4" / "lab").glob("*_samples_*.jsonl")).read_text().splitlines()) == 6

    samples = load_samples(result)
    assert len(samples) == result.num_samples == 6
    assert sum(sample["score"] for sample in samples) / 6 == result.accuracy
    forwards = sum(sample["forwards"] for sample in samples)
    assert sum(sample["real_tokens"] for sample in samples) / forwards == result.tokens_per_forward


def texts(ref: BenchmarkRef) -> dict[str, str]:
    return {sample["id"]: sample["text"] for sample in load_samples(ref)}


def test_new_weights_at_an_old_path_are_asked_anew_and_the_same_weights_are_not(
    make_model: Callable[..., ModelRef], dataset: DatasetRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bard_core.evaluation.lmms_plugin import BardChat

    asked: list[int] = []
    decode = BardChat.decode
    monkeypatch.setattr(
        BardChat, "decode", lambda self, inputs, *rest: asked.append(len(inputs["input_ids"])) or decode(self, inputs, *rest)
    )
    answers = str(tmp_path / "answers")
    model = make_model(tmp_path / "b4", 4, seed=0)
    first = judge(model, dataset, BENCHMARK, CONFIG, str(tmp_path / "first"), answers)
    again = judge(model, dataset, BENCHMARK, CONFIG, str(tmp_path / "again"), answers)
    assert (sum(asked), again.score, texts(again)) == (6, first.score, texts(first))
    assert again.key == first.key and again.uri != first.uri, "no clock, place or address in what lmms-eval wrote"
    assert judge(model, dataset, BENCHMARK, CONFIG, first.uri, str(tmp_path / "nowhere")) == first

    short = CONFIG.model_copy(update={"decoding": DecodingConfig(max_new_tokens=4)})
    judge(model, dataset, BENCHMARK, short, str(tmp_path / "short"), answers)
    assert sum(asked) == 12, "other decoding settings are other answers"

    before = texts(first)
    second = judge(make_model(tmp_path / "b4", 4, seed=1), dataset, BENCHMARK, CONFIG, first.uri, answers)
    assert sum(asked) == 18
    assert before.keys() == texts(second).keys() and before != texts(second)
    assert first.score.dataset_fingerprint == second.score.dataset_fingerprint


def test_judging_our_own_task_reads_none_of_lmms_evals_task_files(
    make_model: Callable[..., ModelRef], dataset: DatasetRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmms_eval.tasks import TaskManager

    read: list[str] = []
    index = TaskManager._get_task_and_group
    monkeypatch.setattr(TaskManager, "_get_task_and_group", lambda self, folder: read.append(folder) or index(self, folder))
    judge(make_model(tmp_path / "b4", 4), dataset, BENCHMARK, CONFIG, str(tmp_path / "score"), str(tmp_path / "answers"))
    assert read and not [folder for folder in read if "lmms_eval" in folder], "they are 1,600, and take 5 seconds"


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(
    make_model: Callable[..., ModelRef], dataset: DatasetRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bard_core.evaluation.lmms_plugin import BardChat

    model = make_model(tmp_path / "b4", 4)
    alone = judge(model, dataset, BENCHMARK, CONFIG, str(tmp_path / "alone"), str(tmp_path / "one"), processes=1)
    monkeypatch.setattr(BardChat, "decode", lambda self, inputs, *rest: pytest.fail("scoring had to answer"))
    spread = judge(model, dataset, BENCHMARK, CONFIG, str(tmp_path / "spread"), str(tmp_path / "two"), processes=2)
    assert spread.score == alone.score and spread.key == alone.key
    assert load_samples(spread) == load_samples(alone)
    parts = [path.read_text().splitlines() for path in (tmp_path / "two").rglob("*.jsonl")]
    assert [len(part) for part in parts] == [3, 3], "each sample once"


def test_findings_judge_in_their_own_process_and_score_the_same(
    make_model: Callable[..., ModelRef], dataset: DatasetRef, tmp_path: Path
) -> None:
    from bard_core.findings.judge import judge as judge_here

    model, source = make_model(tmp_path / "b4", 4), make_model(tmp_path / "source", 1)
    score = judge(model, dataset, BENCHMARK, CONFIG, str(tmp_path / "score"), str(tmp_path / "answers")).score
    point = judge_here(model, source, dataset, CONFIG)["points"][f"{CONFIG.decoding.confidence_threshold:g}"]
    assert (point["accuracy"], point["fields"]) == (score.accuracy, pytest.approx(score.metrics["fields"]))
    assert sum(point["samples"]["real_tokens"]) == score.real_tokens
    assert sum(point["samples"]["forwards"]) == score.forwards
    (own,) = judge_here(source, source, dataset, CONFIG)["points"].values()
    assert own["tokens_per_forward"] == 1.0


def test_a_benchmark_that_failed_leaves_the_others_and_the_run_partial(
    make_model: Callable[..., ModelRef], dataset: DatasetRef, tmp_path: Path
) -> None:
    other = tmp_path / "two.yaml"
    other.write_text(
        "description: two\nversion: 1\ninclude: [lab]\nbenchmarks:\n"
        "  - {name: broken, task: no_such_task, metrics: {exact: 1.0}, prompt: null}\n"
    )
    config = CONFIG.model_copy(update={"suite": str(other)})
    source = make_model(tmp_path / "source", 1)
    judged = judge(source, dataset, suite_of(config).benchmarks[0], config, str(tmp_path / "lab"), str(tmp_path / "answers"))
    result = evaluate(source, source, dataset, config, str(tmp_path / "judged"), judged=[judged])
    assert (result.missing, result.complete, result.accuracy) == (("broken",), False, judged.score.accuracy)
    with pytest.raises(RuntimeError, match="no benchmark of suite 'two' gave a score"):
        evaluate(source, source, dataset, config, str(tmp_path / "none"), judged=[])
