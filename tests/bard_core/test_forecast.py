"""The forecast finds what the pipeline's tasks would find: datasets, models, half a training; and times what is left."""

from pathlib import Path

import pytest

from bard_core.config.faults import read_config
from bard_core.data.inputs import raw_inputs
from bard_core.data.prepare import prepare
from bard_core.forecast import Item, duration, forecast
from bard_core.store import artifacts, places, times
from bard_core.training.spec import run_of, source_spec
from tasks.progress import said

LAB = Path(__file__).resolve().parents[2] / "configs" / "lab.yaml"
TINY = [("data.lab.train_images", "8"), ("data.lab.eval_images", "2")]


def words(config):
    return {item.name: item.words for item in forecast(config).items}


def commit(tmp_path, uri, **facts):
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "weights").write_bytes(b"w")
    return artifacts.commit_directory(tmp_path / "staging", uri, **facts)


def test_a_training_goes_on_where_its_checkpoint_stands(bard_home, tmp_path):
    config = read_config(LAB, TINY)
    assert set(words(config).values()) == {"runs"}
    dataset = prepare(config.data, places.dataset_uri(config.storage_config, config.data, raw_inputs(config.data), []))
    run = run_of(source_spec(config.source, dataset))
    commit(tmp_path, run.checkpoint(500), kind="checkpoint", step=500)
    found = words(config)
    assert (found["prepare"], found["source"], found["pbm-b4"]) == ("kept", "continues at step 500", "runs")
    (Path(run.checkpoint(500)) / "manifest.json").unlink()
    assert words(config)["source"] == "runs", "half a checkpoint is none"


def test_a_finished_training_is_kept_and_another_rate_is_another_training(bard_home, tmp_path):
    config = read_config(LAB, TINY)
    dataset = prepare(config.data, places.dataset_uri(config.storage_config, config.data, raw_inputs(config.data), []))
    commit(tmp_path, run_of(source_spec(config.source, dataset)).checkpoint(1000), kind="checkpoint", step=1000)
    assert words(config)["source"] == "kept"
    assert forecast(config).lines[1] == "source: kept and judged again"
    assert words(read_config(LAB, [*TINY, ("source.train.optimizer.lr", "1e-3")]))["source"] == "runs"


def test_an_elastic_training_is_one_and_its_models_are_judged_one_by_one(bard_home, tmp_path):
    sizes = [{"block_sizes": [4, 8, 32], "train": {"steps": 9, "batch_size": 4}}]
    ahead = forecast(read_config(LAB, [*TINY, ("pbm.stages", str(sizes))]))
    names = [item.name for item in ahead.items]
    assert names[3:7] == ["pbm-b4-8-32", "evaluate pbm-b4", "evaluate pbm-b8", "evaluate pbm-b32"]
    assert [item.name for item in ahead.trainings] == ["source", "pbm-b4-8-32", "swd-b32"]


def test_what_is_left_is_timed_by_the_last_run(bard_home):
    config = read_config(LAB, TINY)
    assert forecast(config).lines[-1].startswith("how long it takes is not known")
    assert said(forecast(config), "pbm-b8") == "stage 3 of 6: pbm-b8"
    for what, seconds, units in (("prepare", 3, 1), ("source", 100, 1000), ("judge source lab", 4, 1), ("evaluate source", 6, 1)):
        times.note(what, seconds, units)
    times.note("report", 2)
    left = 0.1 * (250 + 250 + 450 + 750) + 10 * 4 + 2
    assert forecast(config).seconds_from("pbm-b8") == pytest.approx(left)
    assert said(forecast(config), "pbm-b8") == "stage 3 of 6: pbm-b8, about 4 min left"
    times.note("pbm-b8", 500, 250)
    assert "pbm-b8: runs, about 8 min" in forecast(config).lines
    assert said(forecast(config), "source") and not said(forecast(config), "pbm-b4-token")
    (bard_home / "times.json").write_text("[1")
    assert times.known() == {}


def test_an_artifact_that_stood_there_is_not_timed(bard_home, tmp_path):
    with times.measured("x", str(tmp_path / "x")):
        commit(tmp_path, str(tmp_path / "x"), kind="model")
    assert times.known()["x"].seconds > 0
    times.note("x", 77.0)
    with times.measured("x", str(tmp_path / "x")):
        pass
    assert times.known()["x"].seconds == 77.0


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1 s"), (40, "40 s"), (300, "5 min"), (9000, "2.5 h")])
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said


def test_words_of_what_is_left():
    assert Item("a", "train", 3, 5, None).words == "continues at step 2" and Item("a", "report", 0, 1, None).kept
