"""The lab part of ``decode.py``: accuracy against speed of the trained lab models, over policies and thresholds.

Models and data are the newest of each name that a pipeline run left in ``$BARD_HOME/artifacts``. Accuracy and tokens per forward
come from the whole suite, speed from some of its prompts one by one, all decoders in turn.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from _released import released

from bard_core import artifacts, storage
from bard_core.artifacts import OperatingPoint
from bard_core.decoding import generate
from bard_core.evaluation.speed import Decode, Timing, compare, take_turns
from bard_core.evaluation.suites import Suite, prepare_suite
from bard_core.evaluation.tradeoff import accuracy_under_parallelism
from bard_core.models import bard_settings

NEW_TOKENS, PROMPTS, BATCH = 64, 12, 32
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
POLICIES: dict[str, dict[str, Any]] = {
    **{f"dynamic {t:g}": {"strategy": "dynamic", "confidence_threshold": t} for t in THRESHOLDS},
    **{f"factor {f:g}": {"strategy": "factor", "factor": f} for f in (0.25, 1.0)},
    **{f"entropy {bound:g}": {"strategy": "entropy", "entropy_bound": bound} for bound in (0.05, 0.3)},
    "dynamic 0.7, revised below 0.3": {"strategy": "dynamic", "confidence_threshold": 0.7, "revision_threshold": 0.3},
}
SELF_SPECULATIVE = {"strategy": "self_speculative"}  # for models with a token-causal clean stream


def sweep_lab() -> dict[str, Any] | None:
    """Measure every trained lab model; None where there is none."""
    root = storage.home() / "artifacts"
    datasets, folders = _newest(root / "prepare"), _newest(root / "models")
    if "source" not in folders or not datasets:
        print(f"no trained lab models under {root}: run `make demo` first for the lab part")
        return None
    from bard_core.evaluation import lmms_plugin as plugin

    dataset = datasets["dataset"]
    with tempfile.TemporaryDirectory() as scratch:
        suite = prepare_suite("lab", dataset, artifacts.verify(str(dataset)).digest, Path(scratch))
        source = plugin.BardChat(str(folders["source"]), mode="ar", batch_size=BATCH, max_new_tokens=NEW_TOKENS)
        baseline = plugin.score(source, suite.task_folder, suite.task, None).metrics[suite.metric]
        prompts = source.some_prompts(PROMPTS)
        models = {
            name: _sweep(plugin, folder, suite, source.decode, prompts) for name, folder in folders.items() if name != "source"
        }
    best = max([baseline, *(point["accuracy"] for model in models.values() for point in model["points"].values())])
    for model in models.values():
        curve = [_point(point) for name, point in model["points"].items() if name.startswith("dynamic 0") and "," not in name]
        model["aup_of_dynamic"] = accuracy_under_parallelism(curve, best)
    return {
        "ar_accuracy": baseline,
        "samples": len(source.requests),
        "speedup_at": {f"parity - {100 * margin:g}": _fastest(models, baseline - margin) for margin in (0.0, 0.005, 0.025)},
        "models": models,
    }


def _newest(folder: Path) -> dict[str, Path]:
    """Artifacts by name, ``<name>-<digest>``; of several of one name the newest."""
    found = sorted((path for path in folder.glob("*-*") if (path / "manifest.json").is_file()), key=lambda p: p.stat().st_mtime)
    return {path.name.rpartition("-")[0]: path for path in found}


def _sweep(plugin: Any, folder: Path, suite: Suite, decode_ar: Decode, prompts: list[Any]) -> dict[str, Any]:
    """One model under every policy, and under the released schedule where it has one."""
    chat = plugin.BardChat(str(folder), batch_size=BATCH, max_new_tokens=NEW_TOKENS)
    settings = bard_settings(chat.model)
    policies = POLICIES | ({"self-speculative": SELF_SPECULATIVE} if settings.clean_attention == "causal" else {})
    decoders: dict[str, Decode] = {"ar": decode_ar}
    points: dict[str, dict[str, Any]] = {}
    for name, policy in policies.items():
        points[name] = _judge(plugin, chat, suite, policy)
        decoders[name] = partial(generate, chat.model, max_new_tokens=NEW_TOKENS, **policy)
        if name in ("dynamic 0.9", "dynamic 0.95"):
            paper = _judge(plugin, chat, suite, policy | {"schedule": "paper"})
            assert paper.pop("texts") == points[name]["texts"], "the fused engine and the released schedule disagree"
            points[name]["released_forwards_over_ours"] = paper["forwards"] / points[name]["forwards"]
            decoders[f"released, {name}"] = partial(released, chat.model, options={**policy, "max_new_tokens": NEW_TOKENS})
    timings = take_turns(prompts, decoders)
    for name, point in points.items():
        point.pop("texts")
        point |= {"speedup": compare(timings[name], timings["ar"]).speedup, **_numbers(timings, name)}
        print(
            f"{folder.name.rpartition('-')[0]:10s} {name:32s} {100 * point['accuracy']:5.1f} %  {point['speedup']:.2f}x",
            flush=True,
        )
    return {
        "block_size": settings.block_size,
        "clean_attention": settings.clean_attention,
        "points": points,
        "ar": _numbers(timings, "ar"),
    }


def _judge(plugin: Any, chat: Any, suite: Suite, policy: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, and forwards and tokens over the whole suite."""
    chat.options = policy
    scores = plugin.score(chat, suite.task_folder, suite.task, None)
    forwards = sum(record["forwards"] for record in scores.records)
    return {
        "accuracy": scores.metrics[suite.metric],
        "forwards": forwards,
        "tokens_per_forward_of_suite": sum(record["real_tokens"] for record in scores.records) / forwards,
        "texts": [record["text"] for record in scores.records],
    }


def _numbers(timings: dict[str, Timing], name: str) -> dict[str, Any]:
    """A decoder's own timing, and how the released style does at the same setting."""
    numbers: dict[str, Any] = timings[name].summary()
    if (other := timings.get(f"released, {name}")) is not None:
        numbers["over_released_style"] = timings[name].tokens_per_s / other.tokens_per_s
    return numbers


def _point(point: dict[str, Any]) -> OperatingPoint:
    return OperatingPoint(
        confidence_threshold=None,
        accuracy=point["accuracy"],
        tokens_per_forward=point["tokens_per_forward_of_suite"],
        tokens_per_s=point["tokens_per_s"],
        speedup=point["speedup"],
    )


def _fastest(models: dict[str, Any], floor: float) -> dict[str, Any] | None:
    """The fastest model and policy with at least this accuracy."""
    fit = [
        {"model": model, "policy": policy, "speedup": point["speedup"], "accuracy": point["accuracy"]}
        for model, body in models.items()
        for policy, point in body["points"].items()
        if point["accuracy"] >= floor - 1e-12
    ]
    return max(fit, key=lambda found: found["speedup"], default=None)
