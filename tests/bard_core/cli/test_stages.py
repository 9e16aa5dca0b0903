"""The stages one by one on the command line, on a tiny world: prepare, train, distill, consolidate, evaluate, compare, export."""

import json
from pathlib import Path

import pytest

from bard_core.config.faults import read_config
from bard_core.store import artifacts, storage

LAB = Path(__file__).resolve().parents[3] / "configs" / "lab.yaml"
SHORT = [
    option
    for stage in ("source.train", "pbm.stages.0.train", "pbm.stages.1.train", "swd.train")
    for option in (f"--{stage}.steps", "2", f"--{stage}.batch_size", "2", f"--{stage}.log_every", "1")
]
TINY = [
    "--data.lab.train_images=12", "--data.lab.eval_images=4", "--source.lab_model.layers=1", *SHORT,
    "--swd.students=[pbm-b8]", "--evaluation.speed_samples=1", "--evaluation.decoding.max_new_tokens=8",
    "--evaluation.sweep_thresholds=[]",
]  # fmt: skip


@pytest.mark.slow
def test_the_pipeline_verb_by_verb(bard, bard_home, tmp_path):
    def told(verb, *arguments):
        return json.loads(bard(verb, LAB, *TINY, *arguments, "--json"))

    made = tmp_path / "made ü"
    data, dataset = told("prepare", "-o", made / "data"), ("--dataset", made / "data")
    assert data["num_eval"] == 4
    source = told("train", "--block-size", 1, *dataset, "--output", made / "source")
    first = told("train", "--block-size", 4, *dataset, "--parent", made / "source", "--output", made / "pbm-b4")
    assert artifacts.verify(str(made / "pbm-b4")).parent_digest == source["manifest_sha256"]
    bard("train", LAB, *TINY, "--block-size", 8, *dataset, "--parent", made / "pbm-b4", "--output", made / "pbm-b8")
    students = ("--student", made / "pbm-b8", "--teacher", made / "pbm-b4")
    bard("distill", LAB, *TINY, *dataset, *students, "--output", made / "swd-b8")
    assert json.loads((made / "swd-b8" / "config.json").read_text())["bard"]["block_size"] == 8

    again = ("--dcp-dir", first["checkpoint"], "--source-model-dir", made / "source", "--output-dir")
    bard("consolidate", *again, made / "again", "--block-size", 4)
    assert (made / "again" / "model.safetensors").read_bytes() == (made / "pbm-b4" / "model.safetensors").read_bytes()
    bard("consolidate", *again, made / "bare", "--dtype", "bf16", "--max-shard-size-gb", 0.0001, "--skip-copy")
    names = {path.name for path in (made / "bare").iterdir()}
    assert {"config.json", "model.safetensors.index.json"} <= names and "tokenizer.json" not in names
    assert json.loads((made / "bare" / "config.json").read_text())["dtype"] == "bfloat16"

    for name in ("source", "swd-b8"):
        models = ("--model", made / name, "--source", made / "source")
        score = told("evaluate", *models, *dataset, "-o", made / f"score-{name}")
        assert score["num_samples"] == 4 and score["tokens_per_forward"] >= 1.0
    compared = json.loads(bard("compare", made / "score-source", made / "score-swd-b8", "--json"))
    assert compared["num_samples"] == 4
    assert "swd-b8" in (said := bard("compare", made / "score-source", made / "score-swd-b8")) or "pbm-b8" in said
    bard("export", made / "swd-b8", "-o", made / "taken", "--evaluation", made / "score-swd-b8", "--license", "apache-2.0")
    card = (made / "taken" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "| source, pbm-b4, pbm-b8, swd-b8 | lab-train-finevision | not given | 5 |" in card


def test_a_stage_is_the_one_that_the_pipeline_trains(lab_dataset, make_model, tmp_path):
    """The same digest, so that the same run's folder is found by either."""
    from bard_core.training.spec import pbm_spec, run_of, swd_spec

    config, parent = read_config(LAB), make_model(tmp_path / "source", 1)
    spec = pbm_spec(config.pbm.method, (4,), config.pbm.stages[0].train, lab_dataset, parent)
    assert (spec.name, spec.noise) == ("pbm-b4", config.pbm.noise) and storage.exists(parent.uri)
    teacher = make_model(tmp_path / "pbm-b4", 4)
    whole = swd_spec(config.swd, "block", lab_dataset, teacher, teacher)
    alone = swd_spec(config.swd.model_copy(update={"students": ()}), "block", lab_dataset, teacher, teacher)
    assert run_of(whole).uri == run_of(alone).uri


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", LAB, "--block-size", 5, "--dataset", "{data}", "--output", "{new}"), "pbm.stages of .* has 4, 8, 16, 32"),
        (("train", LAB, "--block-size", 4, "--dataset", "{data}", "--output", "{new}"), "--parent is missing"),
        (("train", LAB, "--block-size", 1, "--dataset", "{data}", "--output", "{data}"), "is there already"),
        (("consolidate", "--dcp-dir", "x", "--output-dir", "{new}"), "--source-model-dir is missing"),
        (
            ("consolidate", "--dcp-dir", "x", "--output-dir", "{new}", "--source-model-dir", "y", "--dtype", "int8"),
            "one of bfloat16",
        ),
    ],
)
def test_what_is_missing_is_said(bard, bard_home, lab_dataset, tmp_path, arguments, words):
    import re

    filled = [str(a).format(data=lab_dataset.uri, new=tmp_path / "new") for a in arguments]
    bard(*filled, expect=2)
    assert re.search(words, " ".join(re.sub("[│╭╮╰╯─]", " ", bard.err).split())), bard.err
