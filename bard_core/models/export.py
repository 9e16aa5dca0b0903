"""A model to take away: stock weights and config, and our decoder beside them in the way that transformers provides for.

    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    model.generate(**inputs)                    # decodes by blocks, with Bard not installed

Without ``trust_remote_code`` the same folder is a plain model of its family. The decoder is not written twice: the modules that
``decoding.engine`` needs are copied into ``custom_generate/`` with their imports made relative.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import bard_core
from bard_core.models.vlm import BardSettings
from bard_core.store import artifacts, provenance
from bard_core.store.artifacts import Manifest
from bard_core.store.refs import EvalResult

PACKAGE = Path(bard_core.__file__).parent
ENGINE = "bard_core.decoding.engine"
RECIPE = ("source", "pbm", "swd")
IMPORT = re.compile(r"^(\s*from )(bard_core[\w.]*)( import )", re.MULTILINE)

GENERATE = '''"""Decode by blocks: transformers calls this in place of its own generate. From Bard {version}."""

from typing import Any

import torch

from .{engine} import generate as decode
from .{settings} import Options

IGNORED = ("use_cache", "return_dict_in_generate", "synced_gpus")


def generate(model: Any, inputs: Any = None, **given: Any) -> torch.Tensor:
    """Prompt and response ids [B, L + N], as transformers returns them.

    Takes what the processor returned and, as options, {options}.
    """
    if inputs is not None:
        given["input_ids"] = inputs
    options = {{name: given.pop(name) for name in Options.__annotations__ if name in given}}
    for name in IGNORED:
        given.pop(name, None)
    if given.pop("do_sample", False):
        options.setdefault("temperature", 1.0)
    if (config := given.pop("generation_config", None)) is not None and config.max_new_tokens is not None:
        options.setdefault("max_new_tokens", config.max_new_tokens)
    if wrong := [name for name, value in given.items() if value is not None and not isinstance(value, torch.Tensor)]:
        raise ValueError(f"block decoding has no option {{wrong[0]!r}}; it has {{', '.join(Options.__annotations__)}}")
    output = decode(model, given, **options)
    return torch.cat([given["input_ids"].to(output.sequences.device), output.sequences], dim=1)
'''


@dataclass(frozen=True)
class Card:
    """What the model card says besides what the model's folder knows.

    Attributes:
        title: the model's name. base_model: hub id of what it was converted from. licence: its identifier on the hub, of the
            weights; None: not said. datasets: hub ids of the training data.
        results: evaluations of these weights. frontier: a picture of all checkpoints of the run.
        recipe: the configuration that led to them, of which ``RECIPE``'s sections are shown.
    """

    title: str
    base_model: str | None = None
    licence: str | None = None
    datasets: tuple[str, ...] = ()
    results: tuple[EvalResult, ...] = ()
    frontier: Path | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


def export(model_dir: Path, output_dir: Path, card: Card) -> Manifest:
    """Write and commit ``output_dir`` (new) from a consolidated model's folder.

    Raises:
        ValueError: the model is autoregressive, so there is nothing to decode by blocks.
        FileExistsError: ``output_dir`` is there already. ArtifactError: the model is torn, or a result is of other weights.
    """
    if output_dir.exists():
        raise FileExistsError(f"{output_dir} is there already; name a new folder")
    manifest = artifacts.verify(str(model_dir))
    settings = _settings(model_dir)
    for result in card.results:
        if result.model.key != manifest.digest:
            raise artifacts.ArtifactError(
                f"{result.uri} judged {result.model.key[:12]}, and {model_dir} is {manifest.digest[:12]}: give its own evaluation"
            )
    staging = output_dir.with_name(f".{output_dir.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        skip = shutil.ignore_patterns(artifacts.MANIFEST, "README.md", "training_curve.jsonl")
        shutil.copytree(model_dir, staging, ignore=skip)
        write_decoder(staging / "custom_generate")
        if card.frontier is not None:
            shutil.copyfile(card.frontier, staging / "frontier.png")
        (staging / "README.md").write_text(card_text(card, settings, manifest, provenance.read(model_dir)), encoding="utf-8")
        return artifacts.commit_directory(
            staging, str(output_dir), kind="model", step=manifest.step, parent_digest=manifest.digest
        )
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _settings(model_dir: Path) -> BardSettings:
    recorded = json.loads((model_dir / "config.json").read_text(encoding="utf-8")).get("bard")
    settings = BardSettings(**recorded) if recorded else BardSettings(1, None)
    if settings.block_size == 1:
        raise ValueError(f"{model_dir} is autoregressive (block size 1): export a model that pbm or swd has trained")
    return settings


def write_decoder(folder: Path) -> None:
    """``generate.py`` and, flat beside it, every module of ours that the engine imports."""
    folder.mkdir()
    for module in _closure(ENGINE):
        (folder / f"{_flat(module)}.py").write_text(IMPORT.sub(_relative, _source(module)), encoding="utf-8")
    named = _source("bard_core.decoding.settings").partition("class Options")[2].partition("\n\n\n")[0]
    text = GENERATE.format(
        version=bard_core.__version__,
        engine=_flat(ENGINE),
        settings=_flat("bard_core.decoding.settings"),
        options=", ".join(re.findall(r"^    (\w+): ", named, re.MULTILINE)),
    )
    (folder / "generate.py").write_text(text, encoding="utf-8")


def _closure(module: str) -> list[str]:
    """The module and all of ours that it imports, sorted."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += [match[2] for match in IMPORT.finditer(_source(name))]
    return sorted(found)


def _source(module: str) -> str:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path.read_text(encoding="utf-8")


def _flat(module: str) -> str:
    return "_".join(module.split(".")[1:])


def _relative(found: re.Match[str]) -> str:
    return f"{found[1]}.{_flat(found[2])}{found[3]}"


def card_text(card: Card, settings: BardSettings, manifest: Manifest, trained_on: Sequence[provenance.Entry]) -> str:
    """The model card: metadata that the hub reads, then the same for people."""
    from huggingface_hub import EvalResult as Score
    from huggingface_hub import ModelCardData

    scores = [
        Score(
            task_type="image-text-to-text",
            dataset_type=score.task,
            dataset_name=score.name,
            metric_type="accuracy",
            metric_value=round(100 * score.accuracy, 2),
            metric_args={"stderr": round(100 * score.accuracy_stderr, 2), "samples": score.num_samples},
        )
        for result in card.results
        for score in result.benchmarks
    ]
    data = ModelCardData(
        base_model=card.base_model,
        license=card.licence,
        datasets=list(card.datasets) or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["block-diffusion", "custom_generate", "bard"],
        model_name=card.title,
        eval_results=scores or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_words(card, settings, manifest, trained_on)}"


def _words(card: Card, settings: BardSettings, manifest: Manifest, trained_on: Sequence[provenance.Entry]) -> str:
    attention = "each token by itself (token-causal)" if settings.clean_attention == "causal" else "block by block"
    lines = [
        f"# {card.title}",
        "",
        f"A block-diffusion vision-language model: it denoises {settings.block_size} tokens at once. Converted by Bard "
        f"(arXiv 2604.16514){f' from {card.base_model}' if card.base_model else ''}.",
        "",
        "```python",
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        f'folder = "{card.title}"',
        "model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)",
        "processor = AutoProcessor.from_pretrained(folder)",
        "```",
        "",
        "`model.generate(**inputs)` then decodes by blocks; `confidence_threshold` (0.9) trades speed for accuracy. Without",
        "`trust_remote_code` the folder loads as the plain model of its family, which decodes token by token.",
        "",
        *_score_lines(card.results),
        *(["![accuracy over speed-up of the run's checkpoints](frontier.png)", ""] if card.frontier else []),
        *_data_lines(trained_on),
        *_recipe_lines(card.recipe),
        "## What it is",
        "",
        f"- blocks of {settings.block_size}; answered text is read {attention}; mask token {settings.mask_token_id}",
        f"- weights: sha256 of their manifest {manifest.digest}",
        f"- after step {manifest.step}, from {manifest.parent_digest}" if manifest.step else "- trained elsewhere",
        f"- data: {', '.join(card.datasets) or 'not said'}; licence: {card.licence or 'not said'}",
        "",
        "## Limits",
        "",
        "Scores hold for the suite and threshold they were measured with. Tokens of one block are drawn side by side, so a low",
        "threshold can join words that do not belong together. All limits of the base model remain.",
        "",
    ]
    return "\n".join(lines)


def _data_lines(trained_on: Sequence[provenance.Entry]) -> list[str]:
    """Every source that any stage was trained on, with its licence and what of it was not taken."""
    if not trained_on:
        return []
    table = [provenance.HEAD, ("---",) * len(provenance.HEAD), *provenance.lines(trained_on)]
    return ["## Training data", "", *("| " + " | ".join(line) + " |" for line in table), ""]


def _recipe_lines(recipe: Mapping[str, Any]) -> list[str]:
    shown = {name: recipe[name] for name in RECIPE if name in recipe}
    return ["## Recipe", "", "```yaml", yaml.safe_dump(shown, sort_keys=False).rstrip(), "```", ""] if shown else []


def _score_lines(results: Sequence[EvalResult]) -> list[str]:
    if not results:
        return []
    lines = ["| benchmark | accuracy | samples | tokens a forward | speed over AR |", "| --- | ---: | ---: | ---: | ---: |"]
    for result in results:
        for score in result.benchmarks:
            accuracy = f"{100 * score.accuracy:.1f} ± {100 * score.accuracy_stderr:.1f} %"
            pace = f"{score.real_tokens / max(1, score.forwards):.2f}"
            lines.append(f"| {score.name} | {accuracy} | {score.num_samples} | {pace} | {result.speedup:.2f}x |")
    return [*lines, ""]
