"""Consolidation: what was trained is what ``from_pretrained`` loads, bit for bit, and nothing else is believed."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from bard_core.store import artifacts
from bard_core.training.checkpoints import consolidate as module
from bard_core.training.checkpoints.consolidate import ConsolidationError, consolidate
from bard_core.training.checkpoints.dcp import PlainWriter, stored_alike

SOURCE = Path(os.environ.get("BARD_GOLDEN_DIR") or Path(__file__).parents[3] / "golden") / "model"


def load(folder: Path, **kwargs: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, **kwargs)


def tied_copy(folder: Path, head: bool) -> Path:
    """The source with ``tie_word_embeddings``; with ``head`` its file still holds a head of its own."""
    shutil.copytree(SOURCE, folder)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    if not head:
        tensors = load_file(folder / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def save(state: dict[str, Any], folder: Path, tmp_path: Path) -> Path:
    staging = tmp_path / "staging"
    whole = {"model": state, "optimizer": {"state": {"model.exp_avg": torch.ones(10_000)}}}
    dcp.save(whole, storage_writer=PlainWriter(str(staging)), no_dist=True)
    artifacts.commit_directory(staging, str(folder), kind="checkpoint", step=7, config_digest="c" * 64, parent_digest="p" * 64)
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Any, Path]:
    """A model whose weights have moved away from the source's, and its checkpoint."""
    model = load(SOURCE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return model, save(model.state_dict(), tmp_path / "step-000007", tmp_path)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equals_save_pretrained(trained: tuple[Any, Path], tmp_path: Path) -> None:
    model, checkpoint = trained
    out = consolidate(checkpoint, tmp_path / "out", SOURCE, bard={"block_size": 8, "mask_token_id": 5})
    model.save_pretrained(tmp_path / "reference")
    ours, reference = load_file(out / "model.safetensors"), load_file(tmp_path / "reference" / "model.safetensors")
    assert ours.keys() == reference.keys() and all(torch.equal(ours[name], reference[name]) for name in ours)

    loaded, report = load(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.arange(12)[None]
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert loaded.config.bard == {"block_size": 8, "mask_token_id": 5}
    card = (out / "README.md").read_text()
    assert "| block size | 8 |" in card and "| training step | 7 |" in card and str(tmp_path) not in card


def test_many_shards_are_deterministic_and_load(trained: tuple[Any, Path], tmp_path: Path) -> None:
    model, checkpoint = trained
    limit = 2**17
    out = consolidate(checkpoint, tmp_path / "out", SOURCE, max_shard_bytes=limit)
    assert files(out) == files(consolidate(checkpoint, tmp_path / "again", SOURCE, max_shard_bytes=limit))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = {path.name: load_file(path) for path in out.glob("*.safetensors")}
    assert len(shards) > 2 and set(index["weight_map"].values()) == set(shards)
    for tensors in shards.values():
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= limit
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for shard in shards.values() for tensor in shard.values())
    state = load(out).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_dtype_is_converted_and_told(trained: tuple[Any, Path], tmp_path: Path) -> None:
    model, checkpoint = trained
    out = consolidate(checkpoint, tmp_path / "out", SOURCE, dtype=torch.bfloat16)
    loaded = load(out)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(loaded.state_dict()[name], tensor.bfloat16()) for name, tensor in model.state_dict().items())

    half = tmp_path / "half"  # a source kept in bfloat16 whose training ran in float32 must not be loaded rounded
    shutil.copytree(out, half)
    assert load(consolidate(checkpoint, tmp_path / "back", half)).dtype == torch.float32


@pytest.mark.parametrize("head", [False, True])
def test_a_tied_head_is_left_out_and_a_differing_one_is_not_lost(head: bool, tmp_path: Path) -> None:
    source = tied_copy(tmp_path / "source", head)
    model = load(source)  # transformers does not tie what the file holds twice with different values
    checkpoint = save(model.state_dict(), tmp_path / "step-000001", tmp_path)
    out = consolidate(checkpoint, tmp_path / "out", source)
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) == head
    loaded = load(out)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == (not head)
    assert loaded.config.tie_word_embeddings == (not head)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_companions_travel_and_weights_do_not(trained: tuple[Any, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(SOURCE, source)
    kept = {"generation_config.json": "{}", "chat_template.jinja": "{{ x }}", "merges.txt": "a b", "tokenizer.json": "{}"}
    left = {
        "pytorch_model.bin": "x",
        "manifest.json": "{}",
        "model.safetensors.index.json": "{}",
        "README.md": "old",
        "code.py": "",
    }
    for name, text in {**kept, **left}.items():
        (source / name).write_text(text)
    out = consolidate(trained[1], tmp_path / "out", source)
    assert set(files(out)) == {"config.json", "model.safetensors", "README.md", *kept}
    assert "old" not in (out / "README.md").read_text().split()


def _drop(state: dict[str, Any]) -> None:
    del state["model.language_model.norm.weight"]


def _add(state: dict[str, Any]) -> None:
    state["adapter.weight"] = torch.zeros(2)


def _grow(state: dict[str, Any]) -> None:
    state["lm_head.weight"] = torch.zeros(513, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, "are missing, first model.language_model.norm.weight"),
        (_add, "are unknown to the architecture, first adapter.weight"),
        (_grow, r"have another shape, first lm_head.weight \(513, 64\) instead of \(512, 64\)"),
        (dict.clear, "holds no tensor under 'model'"),
    ],
)
def test_another_models_checkpoint_is_refused(change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    state = dict(load(SOURCE).state_dict())
    change(state)
    checkpoint = save(state, tmp_path / "step-000001", tmp_path)
    with pytest.raises(ConsolidationError, match=message):
        consolidate(checkpoint, tmp_path / "out", SOURCE)
    assert not (tmp_path / "out").exists()


class Evil:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return os.symlink, ("/", str(self.marker))


def test_an_evil_checkpoint_is_never_unpickled(trained: tuple[Any, Path], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (trained[1] / ".metadata").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(artifacts.ArtifactError, match=r"\.metadata"):
        consolidate(trained[1], tmp_path / "out", SOURCE)
    (trained[1] / "manifest.json").unlink()
    with pytest.raises(artifacts.ArtifactError, match=r"no manifest\.json"):
        consolidate(trained[1], tmp_path / "out", SOURCE)
    assert not os.path.lexists(marker) and not (tmp_path / "out").exists()


def test_from_an_s3_api(trained: tuple[Any, Path], tmp_path: Path, s3_root: str, bard_home: Path) -> None:
    local = consolidate(trained[1], tmp_path / "local", SOURCE)
    manifest = artifacts.read_manifest(str(trained[1]))
    artifacts.commit_directory(
        trained[1], f"{s3_root}/step-000007", kind="checkpoint", step=7, config_digest="c" * 64, parent_digest="p" * 64
    )
    assert artifacts.read_manifest(f"{s3_root}/step-000007") == manifest
    assert files(consolidate(f"{s3_root}/step-000007", tmp_path / "remote", SOURCE)) == files(local)
    fetched = {path.name for path in (bard_home / "cache").rglob("*") if path.is_file()}
    left = {entry.path: entry.size for entry in manifest.files if entry.path not in fetched}
    assert list(left) == ["optimizer__0_0.distcp"] and left["optimizer__0_0.distcp"] > 4 * 10_000


def test_a_flipped_bit_is_refused(trained: tuple[Any, Path], tmp_path: Path) -> None:
    shard = trained[1] / "__0_0.distcp"
    body = bytearray(shard.read_bytes())
    body[len(body) // 2] ^= 1
    shard.write_bytes(body)
    with pytest.raises(artifacts.ArtifactError, match="recorded sha256"):
        consolidate(trained[1], tmp_path / "out", SOURCE)


def test_only_checkpoints_and_only_into_new_folders(trained: tuple[Any, Path], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "f").write_text("x")
    artifacts.commit_directory(tmp_path / "m", str(tmp_path / "model"), kind="model")
    with pytest.raises(ConsolidationError, match="is a model, not a training checkpoint"):
        consolidate(tmp_path / "model", tmp_path / "out", SOURCE)
    with pytest.raises(ConsolidationError, match=r"no config\.json"):
        consolidate(trained[1], tmp_path / "out", tmp_path / "model")
    with pytest.raises(FileExistsError):
        consolidate(trained[1], tmp_path / "model", SOURCE)
    assert artifacts.verify(str(tmp_path / "model"))


def test_one_output_shard_in_memory_at_a_time(trained: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    read = module._read

    def counted(checkpoint: Path, wanted: Any, adapted: Any) -> Any:
        asked.append(sum(size.numel() * kind.itemsize for size, kind in wanted.values()))
        return read(checkpoint, wanted, adapted)

    monkeypatch.setattr(module, "_read", counted)
    consolidate(trained[1], tmp_path / "out", SOURCE, max_shard_bytes=2**17)
    largest = max(tensor.nbytes for tensor in trained[0].state_dict().values())
    assert max(asked) <= max(2**17, largest) and sum(asked) == sum(t.nbytes for t in trained[0].state_dict().values())


def test_a_tie_is_seen_on_disk(tmp_path: Path) -> None:
    weight = torch.randn(6, 4)
    state = {"a": weight, "b": weight.clone(), "c": weight + 1, "d": weight[:3]}
    dcp.save({"model": state}, checkpoint_id=str(tmp_path), no_dist=True)
    assert stored_alike(tmp_path, "model.a", "model.b")
    assert not any(stored_alike(tmp_path, "model.a", f"model.{name}") for name in "cd")
