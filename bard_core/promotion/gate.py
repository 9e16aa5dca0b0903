"""The gate: a pure decision on the evaluations of a challenger, of the champion and of the source, with its evidence.

Held against the champion alone, a chain of challengers that each lose a little would take the champion down step by step. So a
challenger must also hold the margin against the source, and a gain of speed counts only where chance does not explain it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bard_core.config.sections.evaluation import GateConfig
from bard_core.config.strict import StrictModel
from bard_core.evaluation.compare import ComparisonError, Paired, load_ratios, load_samples, paired, paired_gain
from bard_core.store.refs import EvalResult

_ONE_SIDED_95 = 1.645
_RULE_OF_THREE = 3.0  # what n samples without one difference rule out at 95 %: a rate of 3 / n


@dataclass(frozen=True)
class Judged:
    """An evaluation with its samples, and every timed prompt's speed-up over autoregression."""

    result: EvalResult
    samples: Sequence[Mapping[str, Any]]
    ratios: Sequence[float]

    @classmethod
    def read(cls, result: EvalResult) -> "Judged":
        """Raises ArtifactError when the evaluation is missing or torn."""
        return cls(result, load_samples(result), load_ratios(result))


class Decision(StrictModel):
    """Whether the challenger passes; every reason against it, or else what speaks for it; and the numbers behind both."""

    passed: bool
    reasons: tuple[str, ...]
    evidence: dict[str, Any]

    @property
    def reason(self) -> str:
        return "; ".join(self.reasons)


def largest_loss(found: Paired) -> float:
    """The loss of accuracy that the samples do not rule out at 95 %, one-sided; negative where they show a gain."""
    return max(_ONE_SIDED_95 * found.stderr, _RULE_OF_THREE / found.num_samples) - found.difference


def decide(challenger: Judged, champion: Judged, source: Judged, config: GateConfig) -> Decision:
    """The challenger passes when it is complete, its loss of accuracy is surely within the margin, and it is surely faster.

    Accuracy is held against the champion and against the source, which may be the same. Speed is held against the champion,
    each one's speed-up over its own source's autoregressive decoding, timed in turn in one run: a ratio that another machine
    or another day does not change much.
    """
    result, best = challenger.result, champion.result
    evidence: dict[str, Any] = {
        "accuracy": {"challenger": result.accuracy, "champion": best.accuracy, "source": source.result.accuracy},
        "accuracy_margin": config.accuracy_margin,
        "speedup": {"challenger": result.speedup, "champion": best.speedup, "min_gain": config.min_speed_gain},
        "suite": result.suite,
        "suite_digest": result.suite_digest,
        "evaluations": {"challenger": result.uri, "champion": best.uri, "source": source.result.uri},
        "paired": {},
    }
    against, favour = _completeness(result), []
    rivals = {"source": source} if best.key == source.result.key else {"champion": champion, "source": source}
    for name, rival in rivals.items():
        try:
            found = paired(rival.samples, challenger.samples)
        except ComparisonError as error:
            against.append(f"not comparable with the {name}: {error}")
            continue
        loss = largest_loss(found)
        evidence["paired"][name] = {**asdict(found), "largest_loss": loss}
        words = f"accuracy {100 * found.difference:+.1f} points against the {name} on {found.num_samples} samples"
        if loss > config.accuracy_margin:
            against.append(
                f"{words}: a loss of up to {100 * loss:.1f} cannot be ruled out, {100 * config.accuracy_margin:.1f} is accepted"
            )
        else:
            favour.append(words)
    try:
        gain = paired_gain(champion.ratios, challenger.ratios)
    except ComparisonError as error:
        against.append(f"speed not comparable with the champion's: {error}")
    else:
        evidence["gain"] = asdict(gain)
        words = f"speed-up {result.speedup:.2f}x against the champion's {best.speedup:.2f}x"
        surely = f"surely {gain.at_least:.2f} times as fast, by {gain.prompts} prompts"
        if gain.at_least <= 1 + config.min_speed_gain:
            against.append(f"{words}: {surely}, where more than {1 + config.min_speed_gain:.2f} is asked")
        else:
            favour.append(f"{words}, {surely}")
    return Decision(passed=not against, reasons=tuple(against or favour), evidence=evidence)


def _completeness(result: EvalResult) -> list[str]:
    if result.complete:
        return []
    crashed = sum(score.crashed for score in result.benchmarks)
    what = [f"no score for {', '.join(result.missing)}"] if result.missing else []
    return ["incomplete: " + " and ".join([*what, *([f"{crashed} samples crashed"] if crashed else [])])]
