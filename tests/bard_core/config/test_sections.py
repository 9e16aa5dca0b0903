"""Every configuration file is complete and valid; misspelt keys and wild values are refused by name before anything starts."""

from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from bard_core.config.file import check_stages
from bard_core.config.sections.compute import CheckpointConfig, ComputeConfig
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.evaluation import DecodingConfig, EvaluationConfig, GateConfig
from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.pbm import NoiseStudy, PBMConfig
from bard_core.config.sections.source import SourceConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.config.sections.train import TrainConfig
from bard_core.evaluation.suites import suite_of
from bard_core.promotion.request import Request
from bard_core.store.artifacts import digest

ROOT = Path(__file__).resolve().parents[3]
SECTIONS = {
    "name": str,
    "data": DataConfig,
    "gate": GateConfig,
    "source": SourceConfig,
    "pbm": PBMConfig,
    "swd": SWDConfig,
    "evaluation": EvaluationConfig,
    "compute": ComputeConfig,
    "storage_config": StorageConfig,
    "tracking": TrackingConfig,
    "study": NoiseStudy,
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
    check_stages(parsed["pbm"], parsed["swd"], parsed["evaluation"].decoding)
    assert suite_of(parsed["evaluation"]).benchmarks


@pytest.mark.parametrize("size", ["2b", "4b", "8b"])
def test_the_pipelines_scores_count_when_checkpoints_are_judged_again(size):
    """Other decodings would be another protocol, and every checkpoint be judged twice."""
    receiver = next(yaml.safe_load_all((ROOT / "deploy" / "receiver.yaml").read_text(encoding="utf-8")))
    again = (read(ROOT / "configs" / "reevaluate" / "paper.yaml"), yaml.safe_load(receiver["data"]["inputs.yaml"]))
    first = EvaluationConfig.model_validate(read(ROOT / "configs" / f"bard_{size}.yaml")["evaluation"])
    for inputs in again:
        evaluation = EvaluationConfig.model_validate(inputs["evaluation"])
        assert (evaluation.suite, evaluation.decoding) == (first.suite, first.decoding)


@pytest.mark.parametrize("size", ["2b", "4b", "8b"])
def test_the_papers_recipe(size):
    """As released: t from 0.001, half-weight tails and sample means in pbm; plain CE + KL / 2, one rate, sample means in swd."""
    values = read(ROOT / "configs" / f"bard_{size}.yaml")
    pbm, swd = PBMConfig.model_validate(values["pbm"]), SWDConfig.model_validate(values["swd"])
    assert (pbm.noise.min_t, pbm.tail_weight, pbm.reduction) == (0.001, 0.5, "sample_mean")
    decay = {"2b": 0.0, "4b": 0.0, "8b": 0.01}[size]
    assert {stage.train.optimizer.weight_decay for stage in pbm.stages} == {decay}
    assert (swd.ce_weighting, swd.ce_weight, swd.kl_weight, swd.reduction, swd.tail_weight) == ("none", 1, 0.5, "sample_mean", 1)
    optimizer = swd.train.optimizer
    assert (optimizer.lr, optimizer.vision_lr, optimizer.merger_lr, optimizer.weight_decay) == (6e-6, 6e-6, None, 0.0)


def test_the_noise_study_finds_its_data_and_source_in_the_cache_of_the_demo():
    lab, study = read(ROOT / "configs" / "lab.yaml"), read(ROOT / "configs" / "lab_noises.yaml")
    assert (study["data"], study["source"]) == (lab["data"], lab["source"])


@pytest.mark.parametrize("section", [StorageConfig, CheckpointConfig])
def test_a_place_is_an_absolute_folder_or_has_a_scheme(section):
    for uri in ("", "/data/bard", "~/bard", "s3://bucket/bard", "file:///data/bard"):
        assert section(root_uri=uri).root_uri == uri
    for uri in ("bard", "./bard", "s3//bucket/bard"):
        with pytest.raises(ValidationError, match="neither an absolute folder nor a place like s3://"):
            section(root_uri=uri)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "reevaluate").glob("*.yaml")), ids=lambda p: p.name)
def test_a_reevaluation_is_complete_and_its_suite_exists(path):
    request = Request.read(path)
    assert suite_of(request.evaluation).benchmarks
    with pytest.raises(ValidationError, match="accuracy_mragin"):
        Request.model_validate({**read(path), "gate": {"accuracy_mragin": 0.1}})


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("swd", {"kl_wieght": 1}, "unknown key 'kl_wieght': did you mean 'kl_weight'.*allowed are students, "),
        ("evaluation", {"decoding": {"confidence_threshold": 1.5}}, "less than or equal to 1"),
        ("pbm", {"noise": {"min_t": 0.9, "max_t": 0.1}}, "below max_t"),
        ("pbm", {"noise": {"name": "mix", "complementary": True}}, "needs name: mask"),
        ("pbm", {"noise": {"name": "salt"}}, "'mask', 'uniform', 'edit' or 'mix'"),
        ("pbm", {"noise": {"name": "mix", "schedule": "cosine"}}, "cosine is of mask noise; mix has its own"),
        ("pbm", {"noise": {"complementary": True, "then": {"name": "uniform", "after": 0.5}}}, "leave out noise.then"),
        ("swd", {"noise": {"then": {"name": "mix", "after": 0.5}}, "targets": "offline"}, "set it online"),
        ("pbm", {"clean_attention": "block", "ar_weight": 0.5}, "causal"),
        ("data", {"lab": None}, "sources"),
        ("data", {"processor": "some/model", "min_pixels": 5000, "max_pixels": 4000}, "min_pixels 5000 is above"),
        ("source", {"train": {"batch_size": 4}}, "give either steps or num_epochs, got steps 0 and num_epochs 0"),
        ("source", {"train": {"steps": 4, "num_epochs": 1}}, "got steps 4 and num_epochs 1"),
        ("pbm", {"tail_weight": 1.5}, "less than or equal to 1"),
        ("swd", {"ce_weighting": "t"}, "'none' or 'inverse_t'"),
        ("swd", {"ce_weight": 0, "kl_weight": 0}, "nothing to distil"),
        ("source", {"train": {"steps": 1, "optimizer": {"betas": [0.9, 1.0]}}}, "less than 1"),
    ],
)
def test_faults_are_named(section, change, words):
    values = {**read(ROOT / "configs" / "lab.yaml")[section], **change}
    with pytest.raises(ValidationError, match=words):
        SECTIONS[section].model_validate(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"students": ("pbm-b8", "pbm-b64")},
            "swd.students.1 names pbm-b64, which is none of pbm-b4, pbm-b8, pbm-b16",
        ),
        ({"teacher": "pbm-b2"}, "swd.teacher names pbm-b2"),
        ({"teacher": "owner/Bard-VL-B16-Mask-8B", "students": ("pbm-b8",)}, "no smaller than its teacher's, 16"),
        ({"students": ("pbm-b4",)}, "swd.students.0 names pbm-b4, which is swd.teacher"),
        ({"ar_weight": 0.5}, "swd.ar_weight needs pbm.clean_attention: causal"),
    ],
)
def test_sections_that_do_not_fit_each_other_are_refused(change, words):
    values = read(ROOT / "configs" / "lab.yaml")
    pbm = PBMConfig.model_validate({**values["pbm"], "clean_attention": "block"})
    swd = SWDConfig.model_validate({**values["swd"], **change})
    with pytest.raises(ValueError, match=words):
        check_stages(pbm, swd, DecodingConfig())


@pytest.mark.parametrize(
    ("decoding", "words"),
    [
        ({"strategy": "self_speculative"}, "self_speculative needs pbm.clean_attention: causal"),
        (
            {"strategy": "self_speculative", "revision_threshold": 0.2},
            "revision_threshold has no meaning with strategy self_speculative",
        ),
        ({"denoising_steps": 8}, "denoising_steps is 8, more than the smallest block that is trained, 4"),
    ],
)
def test_a_decoding_that_no_model_can_do_is_refused(decoding, words):
    values = read(ROOT / "configs" / "lab.yaml")
    pbm = PBMConfig.model_validate({**values["pbm"], "clean_attention": "block"})
    swd = SWDConfig.model_validate(values["swd"])
    with pytest.raises(ValueError, match=words):
        check_stages(pbm, swd, DecodingConfig(**decoding))
    causal = PBMConfig.model_validate({**values["pbm"], "clean_attention": "causal"})
    check_stages(causal, swd, DecodingConfig(strategy="self_speculative", denoising_steps=4))


def test_knobs_that_came_later_leave_keys_as_they_were():
    before = {"name": "mask", "min_t": 0.001, "max_t": 1.0, "complementary": False}
    assert NoiseConfig().model_dump() == before and digest(NoiseConfig()) == digest(before)
    assert "lora" not in TrainConfig(steps=1).model_dump()
    assert digest(NoiseConfig(schedule="cosine")) == digest({**before, "schedule": "cosine"}) != digest(before)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "data").glob("paper*.yaml")), ids=lambda path: path.stem)
def test_ready_made_data_name_subsets_licences_and_revisions(path: Path) -> None:
    data = DataConfig.model_validate({"base": path.stem, "seed": 7})
    assert data.seed == 7 and data.suites == ("paper",)
    for source in data.sources:
        assert source.revision and source.license and source.on_bad_part == "drop"
        assert len(set(source.include)) == len(source.include)
    subsets = {source.name: len(source.include) for source in data.sources}
    assert subsets == (
        {"mixed-distil-17w": 0} if path.stem == "paper-swd" else {"finevision": 184, "llava-onevision": 179, "mmfinereason": 0}
    )
