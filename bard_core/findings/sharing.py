"""Variants that share a model share its judgement: the page tells it once, under all their names."""

import json
from collections.abc import Mapping
from typing import Any

Body = Mapping[str, Any]


def told_once(variants: Mapping[str, Body]) -> dict[tuple[str, str], str]:
    """(variant, model) -> the names of all variants that share the model's judgements; only the first of them is there.

    ``variants``: of a claim's results. "all": every variant of which something was judged.
    """
    sharing: dict[tuple[str, str], list[str]] = {}
    for name, variant in variants.items():
        for model in dict.fromkeys(model for seed in variant["seeds"].values() for model in seed["judged"]):
            judged = {seed: body["judged"].get(model) for seed, body in variant["seeds"].items()}
            sharing.setdefault((model, json.dumps(judged)), []).append(name)
    every = {name for names in sharing.values() for name in names}
    return {
        (names[0], model): "all" if {*names} == every and len(every) > 1 else ", ".join(names)
        for (model, _), names in sharing.items()
    }
