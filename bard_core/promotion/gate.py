"""The gate between a challenger and the champion: a pure decision on two evaluations, with its evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bard_core.config.sections import GateConfig
from bard_core.config.strict import StrictModel
from bard_core.evaluation.compare import ComparisonError, Paired, paired
from bard_core.store.refs import EvalResult

_ONE_SIDED_95 = 1.645
_RULE_OF_THREE = 3.0  # what n samples without one difference rule out at 95 %: a rate of 3 / n


class Decision(StrictModel):
    """Whether the challenger passes, every reason against it, and the numbers behind both."""

    passed: bool
    reasons: tuple[str, ...]
    evidence: dict[str, Any]

    @property
    def reason(self) -> str:
        return "; ".join(self.reasons) or "no less accurate, faster, complete"


def largest_loss(found: Paired) -> float:
    """The loss of accuracy that the samples do not rule out at 95 %, one-sided; negative where they show a gain."""
    return max(_ONE_SIDED_95 * found.stderr, _RULE_OF_THREE / found.num_samples) - found.difference


def decide(
    challenger: EvalResult,
    champion: EvalResult,
    challenger_samples: Sequence[Mapping[str, Any]],
    champion_samples: Sequence[Mapping[str, Any]],
    config: GateConfig,
) -> Decision:
    """The challenger passes when it is complete, its loss of accuracy is surely within the margin, and it is faster.

    Speed is each one's speed-up over its own source's autoregressive decoding, timed in turn in one run: a ratio that another
    machine or another day does not change much.
    """
    reasons = []
    evidence: dict[str, Any] = {
        "accuracy": {"challenger": challenger.accuracy, "champion": champion.accuracy, "margin": config.accuracy_margin},
        "speedup": {"challenger": challenger.speedup, "champion": champion.speedup, "min_gain": config.min_speed_gain},
        "suite": challenger.suite,
        "suite_digest": challenger.suite_digest,
        "evaluations": {"challenger": challenger.uri, "champion": champion.uri},
    }
    if not challenger.complete:
        crashed = sum(score.crashed for score in challenger.benchmarks)
        what = [f"no score for {', '.join(challenger.missing)}"] if challenger.missing else []
        reasons.append("incomplete: " + " and ".join([*what, *([f"{crashed} samples crashed"] if crashed else [])]))
    try:
        found = paired(champion_samples, challenger_samples)
    except ComparisonError as error:
        reasons.append(f"not comparable with the champion: {error}")
    else:
        loss = largest_loss(found)
        evidence["paired"] = {**asdict(found), "largest_loss": loss}
        if loss > config.accuracy_margin:
            reasons.append(
                f"accuracy {100 * found.difference:+.1f} points on {found.num_samples} samples: a loss of up to "
                f"{100 * loss:.1f} cannot be ruled out, {100 * config.accuracy_margin:.1f} is accepted"
            )
    if challenger.speedup <= champion.speedup * (1 + config.min_speed_gain):
        reasons.append(
            f"speed-up {challenger.speedup:.2f}x, not above the champion's {champion.speedup:.2f}x"
            + (f" by {100 * config.min_speed_gain:.0f} %" if config.min_speed_gain else "")
        )
    return Decision(passed=not reasons, reasons=tuple(reasons), evidence=evidence)
