"""Preparing through Flyte: one task or several make the same dataset; the run has its card, its numbers, the dataset."""

import io
import json
import random
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.data import DataConfig, LabWorldConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.config.sources import RawSource
from bard_core.data.reader import Reader
from bard_core.lab import world
from bard_core.store import artifacts
from workflows.prepare import prepare


def test_one_task_or_several_make_the_same_dataset(tmp_path, bard_home, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "raw").mkdir()
    for shard in range(5):
        rows = [{"texts": [{"user": f"Q{shard}-{i}", "assistant": "A" if i else " "}]} for i in range(11)]
        (tmp_path / "raw" / f"{shard}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = RawSource(name="s", schema_name="finevision", uri=str(tmp_path / "raw"), license="MIT")
    data = DataConfig(sources=(source,), max_refused=0.1)
    decks = []
    monkeypatch.setattr("tasks.prepare.Deck", lambda name, page: decks.append((name, page)))
    refs = [
        prepare(
            data=data,
            compute=ComputeConfig(prepare_tasks=tasks),
            storage_config=StorageConfig(root_uri=str(tmp_path / f"root{tasks}")),
            tracking=TrackingConfig(),
            parent_run="",
        )
        for tasks in (1, 3)
    ]
    assert refs[0].manifest_sha256 == refs[1].manifest_sha256 and refs[0].num_train + refs[0].num_eval == 50
    client = MlflowClient(tracking_uri=f"sqlite:///{bard_home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bard")
    run = client.search_runs([experiment.experiment_id])[0]
    assert run.data.metrics["num_train"] == refs[0].num_train and run.data.metrics["rows_refused"] == 5
    assert run.inputs.dataset_inputs[0].dataset.digest == refs[0].manifest_sha256[:36]
    assert [name for name, _ in decks] == ["Data card"] * 2 and all(
        word in page for _, page in decks for word in ("MIT", "empty answer")
    )
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["card.html"]


@pytest.mark.slow
def test_pictures_of_benchmarks_and_of_the_other_side_are_found_in_any_format(tmp_path, bard_home, monkeypatch):
    """100 pictures as PNG to train on; as JPEG, half of them asked by a benchmark of files, the others held out: 100 pairs."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    drawn = [world._draw(LabWorldConfig(), random.Random(number))[0] for number in range(101)]
    pictures = [Image.open(io.BytesIO(data)) for data in drawn]
    for kind, some in (("png", pictures), ("jpeg", pictures[:100])):
        (tmp_path / kind).mkdir()
        for number, picture in enumerate(some):
            picture.save(tmp_path / kind / f"{number}.{kind}")
    asked = [{"question": "What?", "answer": "A", "image": f"jpeg/{number}.jpeg"} for number in range(50)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (tmp_path / "mine.yaml").write_text("description: d\nversion: 1\nbenchmarks: [{name: b, questions: q.jsonl}]\n")
    sources = []
    for name, kind, numbers in (("train", "png", range(101)), ("eval", "jpeg", range(50, 100))):
        rows = [
            {
                "messages": [{"role": "user", "content": f"<image>Q{number} {name}"}, {"role": "assistant", "content": "A"}],
                "images": [f"{number}.{kind}"],
            }
            for number in numbers
        ]
        (tmp_path / kind / "chat.json").write_text(json.dumps(rows))
        sources.append(RawSource(name=name, schema_name="messages", uri=str(tmp_path / kind / "chat.json"), split=name))
    ref = prepare(
        data=DataConfig(sources=tuple(sources), suites=("lab", str(tmp_path / "mine.yaml"))),
        compute=ComputeConfig(),
        storage_config=StorageConfig(root_uri=str(tmp_path / "root")),
        tracking=TrackingConfig(),
        parent_run="",
    )
    card = json.loads((Path(ref.uri) / "card.json").read_text())
    assert card["images_that_look_alike"] == {"lab/lab": 0, "mine/b": 50, "held out": 50}
    assert card["left_out"] == {"image looks like a held-out one": 50, "image looks like one of mine/b": 50}
    assert (ref.num_train, ref.num_eval) == (1, 50)


@pytest.mark.parametrize("tasks", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_a_damaged_unit_is_told_and_the_same_command_repairs_it(tasks, tmp_path, bard_home, monkeypatch, caplog):
    """Flyte's cache, and the dataset that stands, both know nothing of the units beside it."""
    monkeypatch.setenv("FLYTE_LOCAL_CACHE_ENABLED", "true")
    (tmp_path / "raw").mkdir()
    for shard in range(2):
        rows = [{"texts": [{"user": f"Q{tasks}-{shard}-{i}", "assistant": "A"}]} for i in range(10)]
        (tmp_path / "raw" / f"{shard}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = RawSource(name="s", schema_name="finevision", uri=str(tmp_path / "raw"), license="MIT")
    place = {"storage_config": StorageConfig(), "tracking": TrackingConfig(), "parent_run": ""}

    def command():
        data = DataConfig(sources=(source,), eval_fraction=0.0)
        return prepare(data=data, compute=ComputeConfig(prepare_tasks=tasks), **place)

    first = command()
    rows = sorted((Path(first.uri).parent / "units").glob("*/rows.arrow"))[-1]
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    with pytest.raises(artifacts.DamagedError, match="run the same command again"):
        [*Reader(first, "train")]
    assert f"it was set aside as {rows.parent}.damaged" in caplog.text and not rows.exists()
    assert command() == first and rows.read_bytes() == whole
    assert len([*Reader(first, "train")]) == 20
    ran = len(client_runs())
    assert command() == first and len(client_runs()) == ran, "repaired once"


def client_runs():
    from bard_core import tracking

    client, experiment = tracking.client_of(TrackingConfig())
    return client.search_runs([experiment])
