"""A pipeline's end finds what MLflow missed or lost of its results, and puts it there, on a real store."""

import sqlite3
from pathlib import Path

import pytest

from bard_core import tracking
from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.config.sections.storage import TrackingConfig
from bard_core.evaluation.evaluate import protocol_digest
from bard_core.store.refs import EvalResult
from bard_core.tracking import TrackingError, models, registry
from bard_core.tracking.completion import complete, missing

EVALUATION = EvaluationConfig()


@pytest.fixture
def config(bard_home: Path) -> TrackingConfig:
    return TrackingConfig()


@pytest.fixture
def results(judge) -> list[EvalResult]:
    student = judge.model("pbm", 4)
    return [judge.result(judge.source, EVALUATION, 900, 1.0), judge.result(student, EVALUATION, 880, 2.0)]


def test_what_was_lost_is_put_there_again_and_only_that(config, results, judge, bard_home, caplog) -> None:
    protocol = protocol_digest(EVALUATION, judge.dataset)
    parent = tracking.open_pipeline(config, "demo", {"data": "d"})
    assert (
        tracking.open_pipeline(config, "demo", {"data": "d"}) == parent != tracking.open_pipeline(config, "demo", {"data": "e"})
    )

    said = complete(config, parent, results, judge.dataset, protocol)
    assert said == [f"{name}: the model, its scores, its version" for name in ("source", "pbm-b4")]
    assert [missing(config, result, protocol) for result in results] == [[], []]
    assert complete(config, parent, results, judge.dataset, protocol) == []
    assert [version.model for version in tracking.versions(config)] == [result.model for result in results]

    client, _ = tracking.client_of(config)
    second = registry.numbers(config, results[1].model.key)
    client.delete_model_version(config.registered_model, str(second[0]))
    assert complete(config, parent, results, judge.dataset, protocol) == ["pbm-b4: its version"]
    logged = models.find_model(config, results[0].model.key)
    client.delete_logged_model_tag(logged.model_id, f"{models.EVALUATION_TAG}{protocol}")
    assert complete(config, parent, results, judge.dataset, protocol) == ["source: its scores"]
    with sqlite3.connect(bard_home / "mlflow.db") as connection:
        wrong = "UPDATE logged_model_metrics SET metric_value = 0.5 WHERE model_id = ? AND metric_name = 'accuracy'"
        assert connection.execute(wrong, (logged.model_id,)).rowcount
    connection.close()
    assert complete(config, parent, results, judge.dataset, protocol) == ["source: its scores"], "a score that nobody measured"
    client.delete_logged_model(logged.model_id)
    assert complete(config, parent, results, judge.dataset, protocol) == ["source: the model, its scores, its version"]
    assert {model.name for model in tracking.scored_models(config) if model.metrics} == {"source", "pbm-b4"}


def test_a_damaged_store_is_set_aside_and_filled_anew(config, results, judge, bard_home, tmp_path, monkeypatch, caplog) -> None:
    protocol = protocol_digest(EVALUATION, judge.dataset)
    complete(config, "", results, judge.dataset, protocol)
    body = bytearray((bard_home / "mlflow.db").read_bytes())
    body[4096:65_536] = b"\x7f" * (65_536 - 4096)
    later = tmp_path / "later"  # another place stands for another process, which holds no open file
    later.mkdir()
    (later / "mlflow.db").write_bytes(body)
    monkeypatch.setenv("BARD_HOME", str(later))
    assert complete(config, "", results, judge.dataset, protocol) != []
    assert (later / "mlflow.db.damaged").read_bytes() == body and "set aside as" in caplog.text
    assert [missing(config, result, protocol) for result in results] == [[], []]


def test_what_cannot_be_put_there_fails(config, results, judge, monkeypatch) -> None:
    protocol = protocol_digest(EVALUATION, judge.dataset)
    monkeypatch.setattr("bard_core.tracking.completion.register", lambda *_: None)
    with pytest.raises(TrackingError, match="still lacks its version of source"):
        complete(config, "", results, judge.dataset, protocol)


def test_refs_that_an_older_bard_registered_are_read(config, judge) -> None:
    model = judge.model("pbm", 8)
    number = tracking.register(config, model, judge.source, judge.dataset)
    old = model.model_dump_json().replace("{", '{"mlflow_model_id": "m-1", ', 1)
    tracking.tag_version(config, number, {registry.MODEL: old})
    assert [version.model for version in tracking.versions(config)] == [model]
