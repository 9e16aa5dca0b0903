"""Speed at parity is of the fastest point that keeps enough, seed by seed."""

from typing import Any

from bard_core.findings.parity import fastest, table, verdict


def judged(source: float, *points: tuple[float, float]) -> dict[str, Any]:
    """Points of one model: (accuracy, speed-up); prefill halves every speed-up."""
    found = {str(n): {"accuracy": a, "speedup": s, "end_to_end_speedup": s / 2} for n, (a, s) in enumerate(points)}
    return {"source": {"ar": {"accuracy": source, "speedup": 1.0, "end_to_end_speedup": 1.0}}, "pbm-b32": found}


def test_the_fastest_that_keeps_a_share_of_the_source() -> None:
    seed = judged(0.8, (0.8, 3.0), (0.7995, 4.0), (0.78, 9.0), (0.5, 20.0))
    assert [fastest(seed, level) for level in (1.0, 0.999, 0.975)] == [(3.0, 1.5), (4.0, 2.0), (9.0, 4.5)]
    assert fastest(judged(0.8, (0.7, 9.0)), 0.975) is None


def test_the_table_says_how_many_seeds_keep_a_level() -> None:
    seeds = {"0": {"judged": judged(1.0, (1.0, 3.0))}, "1": {"judged": judged(1.0, (0.98, 5.0))}, "2": {"judged": {}}}
    lines = list(table({"variants": {"stages": {"seeds": seeds}, "lost": {"seeds": {"0": {"judged": {}}}}}}))
    assert (
        lines[3] == "| stages | 3.0x (1.5x), 1 of 2 seeds | 3.0x (1.5x), 1 of 2 seeds | 3.0x (1.5x), 1 of 2 seeds | 4.0x (2.0x) |"
    )
    assert len(lines) == 5 and list(table({"variants": {}})) == []


def test_the_verdict_is_of_the_fastest_variant_that_keeps_all_with_every_seed() -> None:
    def variant(*speeds: float | None) -> dict[str, Any]:
        return {"seeds": {str(n): {"judged": judged(0.9, (0.9, s) if s else (0.8, 99.0))} for n, s in enumerate(speeds)}}

    def claim(number: int, **variants: dict[str, Any]) -> dict[str, Any]:
        return {"number": number, "seeds": [0, 1], "variants": variants}

    results = [
        claim(1, sure=variant(3.0, 5.0), lucky=variant(50.0, None)),
        claim(5, faster=variant(6.0, 8.0), half=variant(70.0)),
    ]
    assert verdict(results).endswith("| measured | 7.0x (3.5x with prefill) with all of it, every seed: faster of claim 5 |")
    assert verdict([claim(1, lucky=variant(50.0, None))]).endswith("| measured | none with every seed |")
