"""Every configuration file is complete and valid; misspelt keys and wild values are refused by name before anything starts."""

from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from bard_core import config

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = {
    "name": str,
    "data": config.DataConfig,
    "source": config.SourceConfig,
    "pbm": config.PBMConfig,
    "swd": config.SWDConfig,
    "evaluation": config.EvaluationConfig,
    "compute": config.ComputeConfig,
    "storage_config": config.StorageConfig,
    "tracking": config.TrackingConfig,
    "study": config.NoiseStudy,
}
FILES = sorted((ROOT / "configs").glob("*.yaml"))


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_file_is_complete(path):
    values = read(path)
    assert set(values) <= set(SECTIONS)
    parsed = {key: TypeAdapter(SECTIONS[key]).validate_python(value) for key, value in values.items()}
    if "study" in parsed:  # of workflows/noises.py
        assert [noise.name for noise in parsed["study"].noises] == ["mask", "uniform", "edit", "mix"]
        return
    trained = {stage.block_size for stage in parsed["pbm"].stages}
    assert {*parsed["swd"].block_sizes, parsed["swd"].teacher_block_size} <= trained


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("swd", {"kl_wieght": 1}, "kl_wieght"),
        ("evaluation", {"decoding": {"confidence_threshold": 1.5}}, "less than or equal to 1"),
        ("pbm", {"noise": {"min_t": 0.9, "max_t": 0.1}}, "below max_t"),
        ("pbm", {"noise": {"name": "mix", "complementary": True}}, "needs name: mask"),
        ("pbm", {"noise": {"name": "salt"}}, "'mask', 'uniform', 'edit' or 'mix'"),
        ("pbm", {"ar_weight": 0.5}, "causal"),
        ("data", {"lab": None}, "sources"),
    ],
)
def test_faults_are_named(section, change, words):
    values = {**read(ROOT / "configs" / "lab.yaml")[section], **change}
    with pytest.raises(ValidationError, match=words):
        SECTIONS[section].model_validate(values)
