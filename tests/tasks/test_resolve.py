"""A model named by its place: Bard's own as it stands, any other adopted; strangers to the data's vocabulary are refused."""

import json
import shutil
from pathlib import Path

import pytest

from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.data.inputs import found_model
from bard_core.models import bard_settings, load
from bard_core.models.convert import VocabularyError
from bard_core.store import artifacts
from bard_core.training.spec import pbm_spec, swd_spec
from tasks.resolve import resolve_model


@pytest.fixture
def resolve(lab_dataset, bard_home):
    def one(reference, role="teacher"):
        place = {"storage_config": StorageConfig(), "tracking": TrackingConfig(), "parent_run": ""}
        return resolve_model.task_function(found=found_model(str(reference)), role=role, dataset=lab_dataset, **place)

    return one


def plain_copy(ref, folder):
    """The same model as anyone's folder, without Bard's manifest."""
    shutil.copytree(ref.uri, folder)
    (folder / artifacts.MANIFEST).unlink()
    return folder


def test_ours_is_used_and_others_are_adopted(resolve, make_model, tmp_path):
    ref = make_model(tmp_path / "pbm-b8", 8)
    assert resolve(ref.uri) == ref
    adopted = resolve(plain_copy(ref, tmp_path / "theirs"))
    assert (adopted.block_size, adopted.stage) == (8, "pbm") and adopted.uri != ref.uri
    assert bard_settings(load(artifacts.fetch(adopted))).block_size == 8
    assert resolve(plain_copy(ref, tmp_path / "elsewhere")) == adopted, "the same content is the same model"
    source = resolve(ref.uri, "source")
    assert (source.stage, source.block_size, source.key) == ("source", 1, ref.key)


def test_a_stranger_to_the_vocabulary_is_refused(resolve, make_model, tmp_path):
    folder = plain_copy(make_model(tmp_path / "pbm-b4", 4), tmp_path / "stranger")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(VocabularyError, match=r"stranger: 2 of the data's \d+ tokens are others there, first '.*: 40 in data"):
        resolve(folder)


def test_a_mask_token_that_is_a_word_is_refused(resolve, make_model, tmp_path):
    folder = plain_copy(make_model(tmp_path / "pbm-b4", 4), tmp_path / "wordy")
    config = json.loads((folder / "config.json").read_text())
    config["bard"]["mask_token_id"] = 40
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(VocabularyError, match=r"wordy: masks with token 40, the word '.*' in data"):
        resolve(folder)


def test_who_learns_from_whom_is_checked_once_sizes_are_known(lab_config, lab_dataset, make_model, tmp_path):
    small, large, source = (make_model(tmp_path / f"b{size}", size) for size in (4, 8, 1))
    assert swd_spec(lab_config.swd, "block", lab_dataset, small, small).block_size == 4, "the paper's 2B row: 4 from 4"
    with pytest.raises(ValueError, match="has blocks of 8, larger than the 4 of its student"):
        swd_spec(lab_config.swd, "block", lab_dataset, small, large)
    with pytest.raises(ValueError, match=r"swd.student .* is autoregressive"):
        swd_spec(lab_config.swd, "block", lab_dataset, source, small)
    assert swd_spec(lab_config.swd, "block", lab_dataset, small, source).teacher == source
    with pytest.raises(ValueError, match="has blocks of 8; a stage of 4 merges smaller ones"):
        pbm_spec(lab_config.pbm.method, (4,), lab_config.swd.train, lab_dataset, large)


@pytest.fixture
def lab_config():
    from bard_core.config.faults import read_config

    return read_config(Path(__file__).parents[2] / "configs" / "lab.yaml")
