"""A model that several variants share is told once, one that only looks alike by its name is not."""

from typing import Any

from bard_core.findings.sharing import told_once


def variant(**judged: float) -> dict[str, Any]:
    return {"seeds": {"0": {"judged": {model: {"0.9": {"accuracy": accuracy}} for model, accuracy in judged.items()}}}}


def test_each_judgement_is_told_once_under_all_its_names() -> None:
    variants = {
        "plain": variant(source=0.99, b4=0.9, b32=0.5),
        "distilled": variant(source=0.99, b4=0.9, b32=0.7),
        "wider": variant(source=0.98, b4=0.9),
        "not run": {"seeds": {"0": {"judged": {}}}},
    }
    assert told_once(variants) == {
        ("plain", "source"): "plain, distilled",
        ("plain", "b4"): "all",
        ("plain", "b32"): "plain",
        ("distilled", "b32"): "distilled",
        ("wider", "source"): "wider",
    }


def test_other_seeds_are_other_judgements() -> None:
    one, two = variant(b4=0.9), variant(b4=0.9)
    two["seeds"]["1"] = two["seeds"]["0"]
    assert told_once({"one": one, "two": two}) == {("one", "b4"): "one", ("two", "b4"): "two"}
    assert told_once({"one": one}) == {("one", "b4"): "one"}
