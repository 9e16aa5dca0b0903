"""Accuracy against speed over a sweep of thresholds: the best speed-up at a given accuracy, and the area under the curve."""

import math
from collections.abc import Sequence

from bard_core.config.sections.evaluation import DecodingConfig, EvaluationConfig
from bard_core.evaluation.compare import source_of
from bard_core.store.refs import EvalResult, OperatingPoint

ALPHA = 3.0  # how hard lost accuracy weighs
TOLERANCE = 5.0  # points below a curve's own first accuracy, past which it is cut off


def decodings(config: EvaluationConfig, clean_attention: str | None) -> dict[float | None, DecodingConfig]:
    """The decodings at which a block-diffusion model is judged, the configured one among them, by confidence threshold.

    ``None`` is self-speculation, which has no threshold and is there for models with a token-causal clean stream.
    """
    if config.decoding.strategy == "self_speculative":
        return {None: config.decoding}
    thresholds = sorted({config.decoding.confidence_threshold, *config.sweep_thresholds})
    swept: dict[float | None, DecodingConfig] = {
        threshold: config.decoding.model_copy(update={"confidence_threshold": threshold}) for threshold in thresholds
    }
    if config.sweep_thresholds and clean_attention == "causal":
        swept[None] = config.decoding.model_copy(update={"strategy": "self_speculative", "revision_threshold": None})
    return swept


def points(result: EvalResult) -> tuple[OperatingPoint, ...]:
    """Where a model was judged: the thresholds of its sweep, or its one evaluation."""
    if result.sweep:
        return result.sweep
    return (
        OperatingPoint(
            confidence_threshold=None,
            accuracy=result.accuracy,
            tokens_per_forward=result.tokens_per_forward,
            tokens_per_s=result.tokens_per_s,
            speedup=result.speedup,
        ),
    )


def speedup_at_parity(results: Sequence[EvalResult], margin: float = 0.0) -> tuple[EvalResult, OperatingPoint] | None:
    """The fastest block-diffusion model and threshold whose accuracy is at least the source's minus ``margin``, a share.

    The threshold is chosen on the samples it is judged by: an optimistic choice, by less than one standard error or so.

    Raises:
        ComparisonError: there is not exactly one source among the results.
    """
    floor = source_of(results).accuracy - margin - 1e-12
    models = [result for result in results if result.model.stage != "source"]
    fit = [(result, point) for result in models for point in points(result) if point.accuracy >= floor]
    return max(fit, key=lambda found: found[1].speedup, default=None)


def headline(results: Sequence[EvalResult]) -> list[tuple[EvalResult, dict[str, float]]]:
    """AUP, and the speed-up at the source's accuracy where a threshold reaches it, of every model that was swept.

    Raises:
        ComparisonError: there is not exactly one source among the results.
    """
    source = source_of(results)
    best = max(point.accuracy for result in results for point in points(result))
    found = []
    for result in results:
        if result.sweep:
            numbers = {"aup": accuracy_under_parallelism(result.sweep, best)}
            if (parity := speedup_at_parity([source, result])) is not None:
                numbers["speedup_at_parity"] = parity[1].speedup
            found.append((result, numbers))
    return found


def accuracy_under_parallelism(curve: Sequence[OperatingPoint], best_accuracy: float) -> float:
    """AUP, the weighted area under accuracy (per cent) over parallelism (tokens per forward).

    Definition of d3LLM (Qian et al. 2025, "AUP: when accuracy meets parallelism in diffusion language models"), for points
    (rho_i, y_i) sorted by rho, those with y_i < y_1 - 5 left out:

        AUP = rho_1 y_1 + sum_{i>1} (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2
        W(y) = min(exp(-3 (1 - y / y_max)), 1)

    An autoregressive model scores its accuracy. At no loss of accuracy, AUP is accuracy times tokens per forward.

    Args:
        curve: at least one point of one model.
        best_accuracy: y_max as a share, the best of all models compared.

    Raises:
        ValueError: no points.
    """
    if not curve:
        raise ValueError("AUP needs at least one point of accuracy and tokens per forward")
    ordered = sorted((point.tokens_per_forward, 100 * point.accuracy) for point in curve)
    first_rho, first_y = ordered[0]
    area, rho_before, height_before = first_rho * first_y, first_rho, _weighted(first_y, best_accuracy)
    for rho, y in ordered[1:]:
        if y < first_y - TOLERANCE:
            continue
        height = _weighted(y, best_accuracy)
        area += (rho - rho_before) * (height + height_before) / 2
        rho_before, height_before = rho, height
    return area


def _weighted(y: float, best_accuracy: float) -> float:
    if best_accuracy <= 0:
        return 0.0
    return y * min(math.exp(-ALPHA * (1 - y / (100 * best_accuracy))), 1.0)
