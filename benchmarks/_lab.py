"""The lab part of ``decode.py``: accuracy against speed of the trained lab models, over policies and thresholds.

Models and data are the newest of each name that a pipeline run left in ``$BARD_HOME/artifacts``. Accuracy (the whole answer, as
in the lab's suite) and tokens per forward come from all held-out samples, speed from some, one by one, all decoders in turn.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from _released import released
from tqdm import tqdm

from bard_core.data.heldout import held_out
from bard_core.data.images import open_image
from bard_core.decoding import GenerationOutput, generate, generate_autoregressive
from bard_core.evaluation.speed import Decode, Timing, compare, take_turns
from bard_core.evaluation.tradeoff import accuracy_under_parallelism
from bard_core.models import bard_settings, load
from bard_core.store import storage
from bard_core.store.refs import OperatingPoint

NEW_TOKENS, PROMPTS, BATCHES_OF_8, BATCH = 64, 12, 3, 32
POLICIES: dict[str, dict[str, Any]] = {
    **{f"dynamic {t:g}": {"strategy": "dynamic", "confidence_threshold": t} for t in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)},
    **{f"factor {f:g}": {"strategy": "factor", "factor": f} for f in (0.25, 1.0)},
    **{f"entropy {bound:g}": {"strategy": "entropy", "entropy_bound": bound} for bound in (0.05, 0.3)},
    "dynamic 0.7, revised below 0.3": {"strategy": "dynamic", "confidence_threshold": 0.7, "revision_threshold": 0.3},
}
AGAINST_RELEASED = ("dynamic 0.9", "dynamic 0.95")
SELF_SPECULATIVE = {"strategy": "self_speculative"}  # for models with a token-causal clean stream


def sweep_lab() -> dict[str, Any] | None:
    """Measure every trained lab model; None where there is none."""
    root = storage.home() / "artifacts"
    datasets, folders = _newest(root / "prepare"), _newest(root / "models")
    if "source" not in folders or "dataset" not in datasets:
        print(f"no trained lab models under {root}: run `make demo` first for the lab part")
        return None
    suite = _Suite(datasets["dataset"])
    source = load(folders["source"])
    autoregressive = partial(generate_autoregressive, source, max_new_tokens=NEW_TOKENS)
    baseline = suite.judge(autoregressive)["accuracy"]
    models = {name: _sweep(name, load(folder), suite, autoregressive) for name, folder in folders.items() if name != "source"}
    best = max([baseline, *(point["accuracy"] for model in models.values() for point in model["points"].values())])
    for model in models.values():
        curve = [_point(point) for name, point in model["points"].items() if name.startswith("dynamic") and "," not in name]
        model["aup_of_dynamic"] = accuracy_under_parallelism(curve, best)
    return {
        "ar_accuracy": baseline,
        "samples": suite.samples,
        "speedup_at": {f"parity - {100 * margin:g}": _fastest(models, baseline - margin) for margin in (0.0, 0.005, 0.025)},
        "models": models,
    }


def _newest(folder: Path) -> dict[str, Path]:
    """Artifacts by name, ``<name>-<digest>``; of several of one name the newest."""
    found = sorted((path for path in folder.glob("*-*") if (path / "manifest.json").is_file()), key=lambda p: p.stat().st_mtime)
    return {path.name.rpartition("-")[0]: path for path in found}


class _Suite:
    """The held-out questions of a prepared lab dataset, encoded once for all decoders."""

    def __init__(self, dataset: Path) -> None:
        from transformers import AutoProcessor

        read: Any = AutoProcessor.from_pretrained
        self.processor = read(dataset / "processor")
        rows = list(held_out(str(dataset)))
        self.samples = len(rows)
        self.references = [row["answer"].split() for row in rows]
        chats = [self._chat(row) for row in rows]
        self.batches = [self._encode(chats[start : start + BATCH]) for start in range(0, len(chats), BATCH)]
        some = chats[:: max(1, len(chats) // PROMPTS)][:PROMPTS]
        self.prompts = [self._encode([chat]) for chat in some]
        self.prompts_by_eight = [self._encode(chats[start : start + 8]) for start in range(0, 8 * BATCHES_OF_8, 8)]

    def _chat(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        def item(part: dict[str, Any]) -> dict[str, Any]:
            return {"type": "image", "image": open_image(row["images"][part["image"]])} if part["type"] == "image" else part

        return [
            {"role": message["role"], "content": [item(part) for part in message["content"]]}
            for message in json.loads(row["messages"])[:-1]
        ]

    def _encode(self, chats: list[Any]) -> dict[str, Any]:
        return dict(
            self.processor.apply_chat_template(
                chats,
                tokenize=True,
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True, "padding_side": "left"},
            )
        )

    def judge(self, decode: Decode) -> dict[str, Any]:
        """Accuracy, forwards and tokens per forward over all samples, and the ids of every row."""
        outputs: list[GenerationOutput] = [decode(batch) for batch in tqdm(self.batches, desc="answering", leave=False)]
        texts = [text for out in outputs for text in self.processor.batch_decode(out.sequences, skip_special_tokens=True)]
        right = sum(text.split() == reference for text, reference in zip(texts, self.references, strict=True))
        rows = [row for out in outputs for row in out.stats.rows]
        forwards = sum(row.forwards for row in rows)
        return {
            "accuracy": right / self.samples,
            "forwards": forwards,
            "tokens_per_forward_of_suite": sum(row.real_tokens for row in rows) / forwards,
            "ids": [
                ids[: row.real_tokens] for out in outputs for ids, row in zip(out.sequences.tolist(), out.stats.rows, strict=True)
            ],
        }


def _sweep(title: str, model: Any, suite: _Suite, autoregressive: Decode) -> dict[str, Any]:
    """One model under every policy, and under the released schedule where it has one."""
    settings = bard_settings(model)
    policies = POLICIES | ({"self-speculative": SELF_SPECULATIVE} if settings.clean_attention == "causal" else {})
    decoders: dict[str, Decode] = {"ar": autoregressive}
    points: dict[str, dict[str, Any]] = {}
    for name, policy in policies.items():
        decoders[name] = partial(generate, model, max_new_tokens=NEW_TOKENS, **policy)
        points[name] = suite.judge(decoders[name])
        if name in AGAINST_RELEASED:
            paper = suite.judge(partial(generate, model, max_new_tokens=NEW_TOKENS, schedule="paper", **policy))
            assert paper["ids"] == points[name]["ids"], "the fused engine and the released schedule disagree"
            points[name]["released_forwards_over_ours"] = paper["forwards"] / points[name]["forwards"]
            decoders[f"released, {name}"] = partial(released, model, options={**policy, "max_new_tokens": NEW_TOKENS})
    timings = take_turns(suite.prompts, decoders)
    for name, point in points.items():
        point.pop("ids")
        point |= {"speedup": compare(timings[name], timings["ar"]).speedup, **_numbers(timings, name)}
        print(f"{title:10s} {name:32s} {100 * point['accuracy']:5.1f} %  {point['speedup']:.2f}x", flush=True)
    by_eight = take_turns(suite.prompts_by_eight, {name: decoders[name] for name in ("ar", *AGAINST_RELEASED)})
    return {
        "block_size": settings.block_size,
        "clean_attention": settings.clean_attention,
        "points": points,
        "ar": _numbers(timings, "ar"),
        "batch_8": {
            name: {"speedup": compare(timing, by_eight["ar"]).speedup, **_numbers(by_eight, name)}
            for name, timing in by_eight.items()
        },
    }


def _numbers(timings: dict[str, Timing], name: str) -> dict[str, Any]:
    """A decoder's own timing, and how it does against the released style at the same setting."""
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
