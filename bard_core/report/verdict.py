"""Which model to ship, in a sentence: the fastest that the gate would pass against the source, and what speed costs elsewhere."""

from collections.abc import Sequence
from typing import Any

from bard_core.config.sections.evaluation import GateConfig
from bard_core.evaluation.compare import source_of
from bard_core.evaluation.tradeoff import points, speedup_at_parity
from bard_core.promotion.gate import Decision, Judged, decide
from bard_core.store.refs import EvalResult, OperatingPoint

MARGINS = ((0.0, "at equal accuracy"), (0.005, "within 0.5 points of it"), (0.025, "within 2.5 points of it"))


def verdict(results: Sequence[EvalResult], gate: GateConfig) -> dict[str, Any]:
    """``ship``: a model's name, or None. ``say``: the sentence. ``why``: what speaks for it, or against the best that failed.
    ``speed``: the best speed-ups at the source's accuracy and a little below, over models and thresholds.

    Accuracies of 0 allow no verdict: whoever answers nothing right may be fast at it.

    Raises:
        ComparisonError: there is not exactly one source among the results.
    """
    source = source_of(results)
    best = max(point.accuracy for result in results for point in points(result))
    if source.accuracy == 0 or best == 0:
        who = "no model gives a right answer" if best == 0 else "the source gives no right answer"
        return {"ship": None, "say": f"No verdict: {who}, so speeds at equal accuracy say nothing.", "why": "", "speed": ""}
    baseline = Judged.read(source)
    others = sorted((r for r in results if r is not source), key=lambda result: result.speedup, reverse=True)
    decisions = {result.model.name: decide(Judged.read(result), baseline, baseline, gate) for result in others}
    speed = "; ".join(f"{words}: {_found(speedup_at_parity(results, margin))}" for margin, words in MARGINS)
    ready = next((result for result in others if decisions[result.model.name].passed), None)
    if ready is not None:
        say = f"Ship {ready.model.name}: {_score(ready)}, {ready.speedup:.1f}x as fast as the source ({_score(source)})."
        return {"ship": ready.model.name, "say": say, "why": _why(decisions[ready.model.name]), "speed": speed}
    if not others:
        return {"ship": None, "say": f"Only the source was judged: {_score(source)}.", "why": "", "speed": speed}
    nearest = max(others, key=lambda result: (result.accuracy, result.speedup))
    say = f"Ship none yet. Nearest is {nearest.model.name}: {_score(nearest)}, {nearest.speedup:.1f}x as fast as the source "
    return {"ship": None, "say": f"{say}({_score(source)}).", "why": _why(decisions[nearest.model.name]), "speed": speed}


def _why(decision: Decision) -> str:
    """The gate's reasons; here the source stands where the champion would."""
    return decision.reason.replace("champion", "source")


def sentence(found: dict[str, Any]) -> str:
    """All of it on one line, for the terminal and for Markdown."""
    speed = f" Speed-up over autoregressive decoding, {found['speed']}." if found["speed"] else ""
    return found["say"] + speed


def _score(result: EvalResult) -> str:
    return f"{100 * result.accuracy:.1f} %"


def _found(best: tuple[EvalResult, OperatingPoint] | None) -> str:
    if best is None:
        return "none"
    result, point = best
    how = f", threshold {point.confidence_threshold:g}" if point.confidence_threshold is not None else ""
    how = ", self-speculative" if result.sweep and not how else how
    return f"{point.speedup:.2f}x ({result.model.name}{how})"
