"""The leaderboard, the report, MLflow and lmms-eval's files show the same numbers, to the last digit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bard_core import tracking
from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.config.sections.storage import TrackingConfig
from bard_core.report import build, leaderboard
from bard_core.tracking import LoggedScores


def scores(name: str, **metrics: float) -> LoggedScores:
    return LoggedScores(f"id-{name}", name, {"stage": "pbm", "block_size": "4"}, {}, metrics)


def test_the_page_is_one_file_and_escapes_what_it_shows() -> None:
    models = [
        scores("<b>", accuracy=1 / 3, accuracy_stderr=0.01, speedup=2.0, chartqa=0.5, chartqa_stderr=0.02),
        scores("x", accuracy=0.5, speedup=1.0, mme=0.25),
    ]
    assert leaderboard.columns(models) == ["accuracy", "speedup", "chartqa", "mme"]
    page = leaderboard.page(models, "All & more")
    assert "<h1>All &amp; more</h1>" in page and "&lt;b&gt;" in page and "<b>" not in page
    assert f'data-v="{1 / 3!r}"' in page and "0.3333 ± 0.01" in page and "0.5 ± 0.02" in page
    assert not re.findall(r"(?:src|href)=", page)
    odd = leaderboard.page([scores("é\\n", accuracy=0.5, speedup=1.0)], "odd")
    assert 'data-v="é\\n"' in odd, "what is no plain ASCII is sorted and shown as it is"


def test_the_frontier_keeps_what_no_other_beats() -> None:
    models = [
        scores(n, accuracy=a, speedup=s) for n, a, s in (("a", 0.9, 1.0), ("b", 0.9, 2.0), ("c", 0.5, 1.5), ("d", 0.5, 3.0))
    ]
    assert [point["model"] for point in leaderboard.points(models) if point["on_frontier"]] == ["b", "d"]


def test_numbers_agree_everywhere(bard_home: Path, judge: Any, tmp_path: Path) -> None:
    config, evaluation = TrackingConfig(), EvaluationConfig()
    results = [judge.result(judge.source, evaluation, 950, 1.0), judge.result(judge.model("pbm", 8), evaluation, 333, 10 / 3)]
    for result in results:
        with tracking.stage_run(config, None, "evaluate", "evaluate", {}) as run:
            tracking.log_evaluation(config, run, result, "p")
    table = build.rows(results)
    logged = {model.name: model for model in tracking.scored_models(config)}
    page = leaderboard.write(config, tmp_path)[0].read_text()
    for row, result in zip(table, results, strict=True):
        metrics = logged[row["model"]].metrics
        for name, value in tracking.headline(result).items():
            assert row[name] == metrics[name] == value
            assert name in leaderboard.HIDDEN or f'data-v="{value!r}"' in page
        assert metrics["lab"] == metrics["lab.exact"] == result.benchmarks[0].metrics["exact"]
        assert json.loads((Path(result.uri) / "results.json").read_text())["accuracy"] == metrics["accuracy"]
    client, _ = tracking.client_of(config)
    linked = {(m.dataset_name, m.dataset_digest) for m in client.get_logged_model(logged["pbm-b8"].model_id).metrics}
    assert linked == {("lab", results[1].suite_digest[:36]), ("lab", "f" * 36)}
    assert tracking.evaluation_of(config, results[1].model.key, "p") == (results[1].uri, results[1].key)
    assert tracking.evaluation_of(config, results[1].model.key, "q") is None
    assert set(logged["source"].params) >= {"git_commit", "image", "block_size", "stage", "parent_sha256", "manifest_sha256"}


@pytest.mark.parametrize("value", [float("nan")])
def test_a_metric_that_is_no_number_still_makes_a_page(value: float) -> None:
    assert "nan" in leaderboard.page([scores("x", accuracy=value)], "t")
