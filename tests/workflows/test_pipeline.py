"""The whole pipeline as a user runs it: pyflyte in a process of its own, real Ray workers, real MLflow, real lmms-eval."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
PYFLYTE = Path(sys.executable).parent / "pyflyte"


class Pipeline:
    """Runs configurations in one home folder, from another working folder and with a temp folder that is emptied."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"

    def run(self, config, expect=0):
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        environment = {
            **os.environ,
            "BARD_HOME": str(self.home),
            "FLYTE_SDK_LOCAL_SANDBOX": str(self.home / "flyte" / "sandbox"),
            "FLYTE_LOCAL_CACHE_ENABLED": "true",
        }
        command = [str(PYFLYTE), "run", str(ROOT / "workflows" / "pipeline.py"), "bard_pipeline", "--inputs-file", str(path)]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout + done.stderr

    def stages(self):
        """How often each stage has run, by MLflow."""
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{self.home / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("bard")
        runs = client.search_runs([experiment.experiment_id], "tags.`bard.kind` = 'stage'", max_results=1000)
        assert all(run.info.status == "FINISHED" for run in runs)
        return Counter(run.data.tags["mlflow.runName"] for run in runs)

    def models(self):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{self.home / 'mlflow.db'}")
        return client.search_logged_models([client.get_experiment_by_name("bard").experiment_id])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return Pipeline(tmp_path_factory.mktemp("prüf"))  # in a path with an umlaut, as any may be


@pytest.fixture(scope="module")
def first_output(pipeline, tiny_config):
    return pipeline.run(tiny_config())


@pytest.mark.slow
def test_every_stage_runs_once_and_the_table_comes_last(pipeline, first_output):
    gated = {name for name in pipeline.stages() if name.startswith("gate ")}
    assert {name.split()[1] for name in gated} == {"pbm-b4", "pbm-b8", "swd-b8"}, "each model but the source was gated"
    assert set(pipeline.stages().values()) == {1}
    assert "pbm-b8: runs\n" in first_output and "stage 4 of 4: swd-b8, about " in first_output
    names = set(pipeline.stages()) - gated
    models = {"source", "pbm-b4", "pbm-b8", "swd-b8"}
    assert names == {"prepare", "report"} | models | {f"{verb} {m}" for verb in ("consolidate", "evaluate") for m in models}
    tail = first_output[first_output.index("speed-up vs AR") :]
    assert "Champion: source (version 1): no version has passed the gate yet" in tail, "six samples prove nothing"
    assert "Held: pbm-b4 (version 2): accuracy" in tail and tail.index("Held: ") < tail.index("Champion: ")
    assert all(name in tail for name in (*models, "report.html", "make ui"))
    report = json.loads(next(pipeline.home.glob("artifacts/report/*/report.json")).read_text())
    assert [row["model"] for row in report["rows"]] == ["source", "pbm-b4", "pbm-b8", "swd-b8"]
    assert report["rows"][0]["tokens_per_forward"] == 1.0
    assert all(report["curves"][name] for name in models)
    logged = {model.name: model for model in pipeline.models()}
    assert set(logged) == models
    for row in report["rows"]:
        metrics = {metric.key: metric.value for metric in logged[row["model"]].metrics}
        assert metrics["accuracy"] == row["accuracy"] and metrics["speedup"] == row["speedup"]


@pytest.mark.slow
def test_a_second_run_runs_nothing(pipeline, first_output, tiny_config):
    before = pipeline.stages()
    output = pipeline.run(tiny_config())
    assert pipeline.stages() == before
    assert "swd-b8: kept\nreport: kept\nnothing is left to run\n" in output
    assert "speed-up vs AR" in output


@pytest.mark.slow
def test_another_rate_and_data_of_its_own_rerun_only_what_follows(pipeline, first_output, tiny_config):
    """Stages that name no data share one; a student's own is in the new model's lineage alone."""
    before = pipeline.stages()
    config = tiny_config()
    config["swd"]["data"] = {**config["data"], "lab": {**config["data"]["lab"], "train_images": 12}}
    config["swd"]["train"]["optimizer"] = {**config["swd"]["train"]["optimizer"], "lr": 1.0e-4}
    output = pipeline.run(config)
    assert "pbm-b8: kept\nprepare for swd: runs\nswd-b8: runs, about " in output
    assert "stage 4 of 4: swd-b8, about " in output
    changed = {name for name, count in pipeline.stages().items() if count != before[name]}
    assert changed == {"prepare", "swd-b8", "consolidate swd-b8", "evaluate swd-b8", "report", "gate swd-b8 v5"}
    lineages = [json.loads(path.read_text()) for path in pipeline.home.glob("artifacts/models/swd-b8-*/training_data.json")]
    samples = {tuple(entry["samples"] for entry in lineage) for lineage in lineages}
    assert samples == {(16, 16, 16, 16), (16, 16, 16, 12)}, "of source, pbm-b4, pbm-b8 and swd-b8"


@pytest.mark.slow
def test_faults_are_refused_before_anything_starts(pipeline, first_output, tiny_config):
    before = pipeline.stages()
    config = tiny_config()
    config["swd"]["kl_wieght"] = 1.0
    assert "kl_wieght" in re.sub(r"\s|│", "", pipeline.run(config, expect=1))
    assert pipeline.stages() == before


@pytest.mark.faults
def test_stages_start_from_models_elsewhere(pipeline, first_output, tiny_config):
    """One stage of merging from a registered model, one student distilled from a folder, and nothing between them."""
    from bard_core.store import artifacts

    before, folders = pipeline.stages(), pipeline.home / "artifacts" / "models"
    (small,), (large,) = ([path.parent for path in folders.glob(f"pbm-b{size}-*/manifest.json")] for size in (4, 8))
    config = tiny_config()
    (stage,) = config["pbm"]["stages"][1:]
    stage["parent"] = "models:/bard/2"
    config["pbm"]["stages"] = [{**stage, "train": {**stage["train"], "seed": 3}}]
    config["swd"] |= {"students": [str(large)], "teacher": str(small)}
    pipeline.run(config)
    changed = {name for name, count in pipeline.stages().items() if count != before[name] and not name.startswith("gate")}
    assert changed == {"parent", "pbm-b8", "consolidate pbm-b8", "evaluate pbm-b8", "student", "teacher", "report"}
    made = max(folders.glob("pbm-b8-*/manifest.json"), key=lambda path: path.stat().st_mtime)
    assert artifacts.read_manifest(str(made.parent)).parent_digest == artifacts.read_manifest(str(small)).digest
