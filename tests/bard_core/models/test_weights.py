"""Shapes first and weights later make the model that transformers loads, bit for bit."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bard_core.models import load
from bard_core.models.vlm import outline
from bard_core.models.weights import fill

CPU = torch.device("cpu")
SOURCE = Path(os.environ.get("BARD_GOLDEN_DIR") or Path(__file__).parents[2] / "golden") / "model"


def tied_copy(folder, head):
    """The golden model with ``tie_word_embeddings``; with ``head`` its file still holds a head of its own."""
    shutil.copytree(SOURCE, folder)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    if not head:
        del tensors["lm_head.weight"]
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def same(model, other):
    """Whether all that two models hold is equal, buffers that no file has included."""
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, kind)()), dict(getattr(other, kind)())
        assert ours.keys() == theirs.keys()
        assert [
            name for name in ours if ours[name].dtype != theirs[name].dtype or not torch.equal(ours[name], theirs[name])
        ] == []


@pytest.mark.parametrize("tied", [False, True])
def test_an_outline_is_filled_with_what_load_would_load(tied, tmp_path):
    folder = tied_copy(tmp_path / "model", head=False) if tied else SOURCE
    if tied:
        (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9], "repetition_penalty": 1.5}')
    plain, model = load(folder), outline(folder)
    assert model.generation_config.eos_token_id == plain.generation_config.eos_token_id
    assert model.generation_config.repetition_penalty == (1.5 if tied else plain.generation_config.repetition_penalty)
    assert all(tensor.is_meta for tensor in model.state_dict().values()) and model.config.bard == plain.config.bard
    fill(model, folder, CPU)
    same(model, plain)
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) == tied
    with torch.no_grad():
        assert torch.equal(model(input_ids=torch.arange(12)[None]).logits, plain(input_ids=torch.arange(12)[None]).logits)


def test_what_only_transformers_can_load_has_no_outline(tmp_path):
    assert outline(tied_copy(tmp_path / "head", head=True)) is None
    renamed = tmp_path / "renamed"
    shutil.copytree(SOURCE, renamed)
    tensors = load_file(renamed / "model.safetensors")
    save_file({f"old.{name}": tensor for name, tensor in tensors.items()}, renamed / "model.safetensors", {"format": "pt"})
    assert outline(renamed) is None
