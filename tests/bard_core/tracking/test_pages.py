"""What people find in MLflow: a pipeline's run with files, verdict and data, and versions that explain themselves."""

import json
import re
from pathlib import Path

from bard_core import tracking
from bard_core.config.sections.storage import TrackingConfig
from bard_core.store.refs import DatasetRef


def test_a_pipeline_shows_its_files_verdict_and_dataset(bard_home, tmp_path):
    config = TrackingConfig()
    run = tracking.open_pipeline(config, "lab", {})
    (tmp_path / "config.yaml").write_text("name: lab\n")
    dataset = DatasetRef(uri="/d", manifest_sha256="d" * 64, num_train=7, epoch_samples=7, num_eval=3)
    tracking.show_pipeline(config, run, [tmp_path / "config.yaml"], "Ship it.", dataset)
    client, experiment = tracking.client_of(config)
    found = client.get_run(run)
    assert found.data.tags["mlflow.note.content"] == found.data.tags["bard.verdict"] == "Ship it."
    assert [file.path for file in client.list_artifacts(run)] == ["config.yaml"]
    (data,) = found.inputs.dataset_inputs
    assert data.dataset.digest == "d" * 36 and json.loads(data.dataset.profile) == {"num_train": 7, "num_eval": 3}
    assert tracking.comparison_page(config) == f"#/experiments/{experiment}/models?workflowType=machine_learning"


def test_versions_say_what_they_are_and_models_which_version(bard_home, judge, capsys):
    from bard_core.config.sections.evaluation import EvaluationConfig

    config = TrackingConfig()
    judge.register(config, EvaluationConfig(), judge.source, right=9, speedup=1.0)
    known = tracking.versions(config)
    tracking.describe_versions(config, {known[0].number: "source: 9 of 10"}, known)
    client, experiment = tracking.client_of(config)
    assert client.get_model_version("bard", str(known[0].number)).description == "source: 9 of 10"
    (model,) = client.search_logged_models([experiment])
    assert model.tags["bard.version"] == f"models:/bard/{known[0].number}"
    page = (Path(__file__).resolve().parents[3] / "docs" / "mlflow.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(snippet, "docs/mlflow.md", "exec"), {})
    assert capsys.readouterr().out == f"{known[0].number} source ()\nsource 0.009 1.0\n"
