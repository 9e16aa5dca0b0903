"""The account of a prepare run: what was kept, what was refused and why, how long samples are, and the leakage check."""

import json
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bard_core.config.sections import DataConfig
from bard_core.data.messages import RowRefused
from bard_core.data.tokenize import Tokenized
from bard_core.lab.world import Split

_MEASURES = ("num_tokens", "num_visual_tokens", "num_supervised_tokens")


class Ledger:
    """Counts rows as they pass; refused ones are written to ``quarantine`` at once. Use as a context manager."""

    def __init__(self, quarantine: Path) -> None:
        self._quarantine = quarantine.open("w", encoding="utf-8")
        self._refused: Counter[tuple[str, str]] = Counter()
        self._kept: Counter[tuple[str, Split]] = Counter()
        self._cut: Counter[str] = Counter()
        self._turns: Counter[Split] = Counter()
        self._lengths: dict[Split, dict[str, array[int]]] = {
            split: {name: array("Q") for name in _MEASURES} for split in ("train", "eval")
        }
        # 8 of the 32 sha256 bytes: 17 M images cost 140 MB, and a false alarm has odds below one in a million
        self._images: dict[Split, array[int]] = {"train": array("Q"), "eval": array("Q")}

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._quarantine.close()

    def refuse(self, row_id: str, source: str, refusal: RowRefused) -> None:
        """Count a refused row and write it to the quarantine file."""
        self._refused[source, refusal.reason] += 1
        line = {"id": row_id, "source": source, "reason": refusal.reason, "detail": refusal.detail}
        self._quarantine.write(json.dumps(line, ensure_ascii=False) + "\n")

    def keep(self, result: Tokenized, split: Split, image_digests: list[bytes]) -> None:
        """Count a kept sample with its image sha256 digests (32 bytes each)."""
        self._kept[result.sample.source, split] += 1
        self._cut[result.sample.source] += result.was_cut
        self._turns[split] += len(result.turns)
        values = (len(result.input_ids), result.num_visual_tokens, result.num_supervised_tokens)
        for name, value in zip(_MEASURES, values, strict=True):
            self._lengths[split][name].append(value)
        self._images[split].extend(int.from_bytes(digest[:8], "big") for digest in image_digests)

    def report(self, config: DataConfig) -> dict[str, Any]:
        """Everything counted, as plain JSON values."""
        train, held_out = (np.unique(np.array(self._images[split], dtype=np.uint64)) for split in ("train", "eval"))
        names = sorted({name for name, _ in [*self._kept, *self._refused]})
        reasons: Counter[str] = Counter()
        for (_, reason), count in self._refused.items():
            reasons[reason] += count
        return {
            "config": config.model_dump(mode="json"),
            "train": self._side("train"),
            "eval": self._side("eval"),
            "refused": dict(sorted(reasons.items())),
            "sources": {name: self._source(name) for name in names},
            "leakage": {
                "method": "sha256 of image bytes",
                "distinct_train_images": len(train),
                "distinct_eval_images": len(held_out),
                "images_in_both": len(np.intersect1d(train, held_out)),
            },
        }

    def _source(self, name: str) -> dict[str, Any]:
        refused = {reason: count for (source, reason), count in sorted(self._refused.items()) if source == name}
        kept = {split: self._kept[name, split] for split in ("train", "eval")}
        rows = sum(kept.values()) + sum(refused.values())
        return {"rows": rows, **kept, "cut_at_a_turn": self._cut[name], "refused": refused}

    def _side(self, split: Split) -> dict[str, Any]:
        lengths = {name: _lengths(values) for name, values in self._lengths[split].items()}
        return {"samples": len(self._lengths[split]["num_tokens"]), "turns": self._turns[split], "lengths": lengths}


def _lengths(values: "array[int]") -> dict[str, Any]:
    """Sum, extremes, quantiles and a histogram over powers of two (key: inclusive upper bound, in tokens)."""
    if not values:
        return {"total": 0, "histogram": {}}
    tokens = np.array(values, dtype=np.int64)
    exponents = np.ceil(np.log2(np.maximum(tokens, 1))).astype(int)
    histogram = {str(2**exponent): int(count) for exponent, count in enumerate(np.bincount(exponents)) if count}
    quantiles = {f"p{percent}": int(np.percentile(tokens, percent)) for percent in (50, 90, 99)}
    extremes = {"min": int(tokens.min()), "mean": round(float(tokens.mean()), 2), "max": int(tokens.max())}
    return {"total": int(tokens.sum()), **extremes, **quantiles, "histogram": histogram}
