"""An exported model decodes by blocks with transformers alone: our package is not there, and the ids are ours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from bard_core.decoding import generate
from bard_core.models.export import Card, export
from bard_core.serving.chat import Chat
from bard_core.store import artifacts
from bard_core.store.refs import BenchmarkScore, EvalResult

# Runs isolated (-I) in an empty folder; whatever brings Bard in by the site-packages is refused.
PLAIN = """
import json, sys

class Absent:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("bard_core", "tasks", "workflows"):
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, picture, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
processor = AutoProcessor.from_pretrained(folder)
items = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": "Read A."}]
ask = dict(add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
inputs = processor.apply_chat_template([{"role": "user", "content": items}], **ask)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
ids = [model.generate(**inputs, **one).tolist() for one in options]
plain = AutoModelForImageTextToText.from_pretrained(folder)
stock = plain.generate(**inputs, max_new_tokens=4, do_sample=False)
try:
    model.generate(**inputs, num_beams=4)
except ValueError as error:
    refused = str(error)
ours = sorted(name for name in sys.modules if name.split(".")[0] == "bard_core")
print(json.dumps([ids, stock.tolist(), type(plain).__name__, refused, ours]))
"""


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "grid.png"
    Image.new("RGB", (64, 64), (30, 200, 30)).save(path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory, make_model):
    """(model ref, exported folder) of a random model with blocks of 4."""
    folder = tmp_path_factory.mktemp("export")
    ref = make_model(folder / "pbm-b4", 4, seed=3)
    export(Path(ref.uri), folder / "taken away", Card("Tiny"))
    return ref, folder / "taken away"


@pytest.mark.slow
def test_it_decodes_by_blocks_without_our_package_to_our_ids(exported, picture, tmp_path):
    ref, folder = exported
    options = [{"max_new_tokens": 24, "confidence_threshold": 0.1}, {"max_new_tokens": 10, "schedule": "paper"}]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", PLAIN, str(folder), str(picture), json.dumps(options)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ids, stock, kind, refused, ours = json.loads(done.stdout.splitlines()[-1])
    chat = Chat.open(ref.uri)
    items = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": "Read A."}]
    inputs = chat.inputs([{"role": "user", "content": items}])
    for found, one in zip(ids, options, strict=True):
        expected = torch.cat([inputs["input_ids"], generate(chat.model, inputs, **one).sequences], dim=1)
        assert found == expected.tolist()
    assert (kind, ours) == ("Qwen3VLForConditionalGeneration", []) and len(stock[0]) <= inputs["input_ids"].shape[1] + 4
    assert "has no option 'num_beams'; it has block_size" in refused


def test_the_folder_is_whole_and_names_what_it_came_from(exported):
    ref, folder = exported
    manifest = artifacts.verify(str(folder))
    assert (manifest.kind, manifest.parent_digest) == ("model", ref.key)
    for path in (folder / "custom_generate").glob("*.py"):
        assert not re.search(r"^\s*(from|import) bard_core", path.read_text(), re.MULTILINE), path
    assert (folder / "model.safetensors").read_bytes() == (Path(ref.uri) / "model.safetensors").read_bytes()


def test_the_card_is_read_by_the_hub(make_model, tmp_path):
    from huggingface_hub import ModelCard

    ref = make_model(tmp_path / "swd-b8", 8)
    score = BenchmarkScore(
        name="chartqa", task="chartqa", task_version="1", prompt=None, metrics={"relaxed": 0.5}, accuracy=0.512,
        accuracy_stderr=0.01, num_samples=2500, crashed=0, real_tokens=100, forwards=25, dataset_fingerprint="f",
    )  # fmt: skip
    result = EvalResult(
        uri="e", manifest_sha256="0", model=ref, suite="paper", suite_digest="0", benchmarks=(score,), accuracy=0.512,
        accuracy_stderr=0.01, num_samples=2500, tokens_per_forward=4.0, tokens_per_s=9.0, ar_tokens_per_s=3.0, speedup=3.0,

    )  # fmt: skip
    Image.new("RGB", (8, 8)).save(tmp_path / "frontier.png")
    recipe = {"data": {"sources": "private"}, "pbm": {"stages": [{"block_size": 8}]}}
    card = Card("Bard-B8", "Qwen/Qwen3-VL-4B-Instruct", "apache-2.0", ("org/data",), (result,), tmp_path / "frontier.png", recipe)
    export(Path(ref.uri), tmp_path / "out", card)
    found = ModelCard.load(tmp_path / "out" / "README.md")
    assert (found.data.base_model, found.data.license, found.data.datasets) == (
        "Qwen/Qwen3-VL-4B-Instruct",
        "apache-2.0",
        ["org/data"],
    )
    (entry,) = found.data.eval_results
    assert (entry.dataset_name, entry.metric_value, entry.metric_args) == ("chartqa", 51.2, {"stderr": 1.0, "samples": 2500})
    assert "| chartqa | 51.2 ± 1.0 % | 2500 | 4.00 | 3.00x |" in found.text and ref.key in found.text
    assert (tmp_path / "out" / "frontier.png").is_file()
    assert "## Recipe\n\n```yaml\npbm:\n  stages:\n  - block_size: 8\n```" in found.text and "private" not in found.text
    assert "mask token" in found.text and "block by block" in found.text


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(make_model, exported, tmp_path):
    source, other = make_model(tmp_path / "source", 1), exported[0]
    with pytest.raises(ValueError, match="autoregressive"):
        export(Path(source.uri), tmp_path / "out", Card("x"))
    with pytest.raises(FileExistsError, match="is there already"):
        export(Path(other.uri), exported[1], Card("x"))
    result = EvalResult(
        uri="e", manifest_sha256="0", model=source, suite="lab", suite_digest="0", accuracy=0.0, accuracy_stderr=0.0,
        num_samples=1, tokens_per_forward=1.0, tokens_per_s=1.0, ar_tokens_per_s=1.0, speedup=1.0,
    )  # fmt: skip
    with pytest.raises(artifacts.ArtifactError, match="give its own evaluation"):
        export(Path(other.uri), tmp_path / "out", Card("x", results=(result,)))
    (Path(source.uri) / "config.json").write_text("{}")
    with pytest.raises(artifacts.ArtifactError):
        export(Path(source.uri), tmp_path / "out", Card("x"))
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
