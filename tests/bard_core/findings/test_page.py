"""What the page draws: a line a variant, or a line a model where a claim has one variant alone."""

from typing import Any

from bard_core.findings import page


def variant(*models: str) -> dict[str, Any]:
    point = {"accuracy": 0.9, "tokens_per_forward": 4.0}
    seed = {"judged": {"source": {"ar": point}, **{model: {"0.7": point, "0.9": point} for model in models}}}
    return {"seeds": {"0": seed, "1": seed}}


def test_of_several_variants_the_last_model_is_drawn_and_of_a_lone_one_each() -> None:
    one, two = variant("pbm-b4", "pbm-b8"), variant("pbm-b8", "swd-b8")
    assert {*page._series({"variants": {"one": one, "two": two}})} == {"one, pbm-b8", "two, swd-b8"}
    drawn = page._series({"variants": {"one": one}})
    assert drawn == dict.fromkeys(("one, pbm-b4", "one, pbm-b8"), [(4.0, 90.0, 0.0)] * 2)
    assert page._series({"variants": {"not run": {"seeds": {}}}}) == {}
