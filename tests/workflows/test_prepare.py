"""Preparing through Flyte: one task or several make the same dataset; the run has its card, its numbers, the dataset."""

import json

from mlflow import MlflowClient

from bard_core.config.sections import ComputeConfig, DataConfig, StorageConfig, TrackingConfig
from bard_core.config.sources import RawSource
from workflows.prepare import prepare


def test_one_task_or_several_make_the_same_dataset(tmp_path, bard_home, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "raw").mkdir()
    for shard in range(5):
        rows = [{"texts": [{"user": f"Q{shard}-{i}", "assistant": "A"}]} for i in range(10)]
        (tmp_path / "raw" / f"{shard}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataConfig(sources=(RawSource(name="s", schema_name="finevision", uri=str(tmp_path / "raw"), license="MIT"),))
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
    assert run.data.metrics["num_train"] == refs[0].num_train and run.data.metrics["rows_refused"] == 0
    assert run.inputs.dataset_inputs[0].dataset.digest == refs[0].manifest_sha256[:36]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["card.html"]
