"""What MLflow is told of a pipeline, and what is refused before it is asked; the last words lead to where things are."""

from pathlib import Path

import pytest
import yaml

from bard_core.config.file import PipelineConfig
from bard_core.config.sections.source import LabModelConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.config.sections.train import TrainConfig
from bard_core.evaluation.suites import SuiteError
from bard_core.store.refs import DatasetRef, ModelRef
from bard_core.training.spec import StageSpec
from tasks import launch, runs

LAB = Path(__file__).parents[2] / "configs" / "lab.yaml"


def test_a_suite_that_is_not_there_is_refused_first():
    values = yaml.safe_load(LAB.read_text(encoding="utf-8"))
    values["evaluation"]["suite"] = "papre"
    config = PipelineConfig.model_validate({**values, "tracking": {"tracking_uri": "http://127.0.0.1:1"}})
    inputs = {name: getattr(config, name) for name in PipelineConfig.model_fields}
    with pytest.raises(SuiteError, match="no suite 'papre'; there are: full, gate, lab, paper"):
        runs.open_run.task_function(**inputs)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://mlflow.example:5000", "Compare the checkpoints: http://mlflow.example:5000/#/experiments/1"),
        ("sqlite:////home/mlflow.db", "Compare the checkpoints: make ui, then http://127.0.0.1:5000/#/experiments/1"),
    ],
)
def test_the_last_words_name_a_server_or_how_to_start_one(uri, words):
    said = runs._where_mlflow_is(uri, "#/experiments/1")
    assert said.startswith(words)
    assert ("make ui" in said) == uri.startswith("sqlite")


def test_mlflow_compares_trainings_by_every_knob():
    train = TrainConfig(steps=1)
    dataset = DatasetRef(uri="/d", manifest_sha256="d" * 64, num_train=1, num_eval=1, epoch_samples=1)
    parent = ModelRef(uri="/m", manifest_sha256="e" * 64, stage="pbm", block_size=8, parent_sha256=None)
    swd = SWDConfig(train=train, kl_weight=0.25)
    place = {"dataset": dataset, "parent": parent, "teacher": parent, "block_size": 8}
    shown = launch._params(StageSpec(stage="swd", train=train, swd=swd, ar_weight=0.5, **place))
    assert (shown["swd.kl_weight"], shown["ar_weight"], shown["noise.name"], shown["train.steps"]) == (0.25, 0.5, "mask", 1)
    assert (shown["swd.ce_weighting"], shown["reduction"], shown["tail_weight"]) == ("none", "token_mean", 0.5)
    assert shown["teacher_sha256"] == "e" * 64 and "swd.train.steps" not in shown
    source = launch._params(StageSpec(stage="source", dataset=dataset, train=train, lab_model=LabModelConfig()))
    assert source["lab_model.layers"] == 4 and "noise.name" not in source
