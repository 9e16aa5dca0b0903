"""Comparing judged checkpoints: sample by sample against a baseline, and all of them on the plane of accuracy and speed."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bard_core.store import artifacts
from bard_core.store.refs import BenchmarkRef, EvalResult

_POWER = 1.96 + 0.84  # two-sided 5 % significance, 80 % power
Document = tuple[str, int]  # a benchmark's name and the document's number in it
_FEWEST_DISCORDANT = 6  # one-sided discordant pairs that an exact sign test needs for p < 0.05: 2 / 2**6


class ComparisonError(ValueError):
    """Two evaluations cannot be compared: says why."""


@dataclass(frozen=True)
class Paired:
    """A candidate against a baseline on the same samples; shares, not per cent.

    Attributes:
        difference: mean score of the candidate minus the baseline's.
        stderr: standard error of that difference, from the differences of single samples.
        wins, losses: samples on which the candidate scores higher, lower.
        p_value: exact sign test of wins against losses (McNemar's exact test where scores are right or wrong).
        smallest_detectable: the difference that this many samples would show with 80 % power at the 5 % level.
        num_samples: samples compared.
    """

    difference: float
    stderr: float
    wins: int
    losses: int
    p_value: float
    smallest_detectable: float
    num_samples: int


@dataclass(frozen=True)
class Gain:
    """How many times as fast a candidate is as a baseline, each prompt's speed-ups over autoregression compared.

    Attributes:
        times: geometric mean over the prompts.
        at_least: its lower bound at 95 %, one-sided, from Student's t over the prompts' logarithms.
        prompts: prompts compared.
    """

    times: float
    at_least: float
    prompts: int


def paired_gain(baseline: Sequence[float], candidate: Sequence[float]) -> Gain:
    """Compare two lists of speed-ups over autoregression, prompt by prompt (``speed.Speed.ratios``).

    Raises:
        ComparisonError: they are of different prompts, or of fewer than two, which show nothing.
    """
    from scipy.stats import t

    if len(baseline) != len(candidate):
        raise ComparisonError(
            f"the baseline was timed on {len(baseline)} prompts, the candidate on {len(candidate)}: "
            "evaluate both with the same speed_samples"
        )
    if len(baseline) < 2:
        raise ComparisonError("speeds were timed on fewer than two prompts, which show nothing: raise evaluation.speed_samples")
    logarithms = [math.log(after / before) for before, after in zip(baseline, candidate, strict=True)]
    mean = math.fsum(logarithms) / len(logarithms)
    least = mean - float(t.ppf(0.95, len(logarithms) - 1)) * standard_error(logarithms)
    return Gain(times=math.exp(mean), at_least=math.exp(least), prompts=len(logarithms))


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of independent values; 0 for fewer than two."""
    count = len(values)
    if count < 2:
        return 0.0
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)


def load_ratios(result: EvalResult) -> list[float]:
    """The speed-up over autoregression of every prompt that an evaluation timed; none where it kept none.

    Raises:
        ArtifactError: the evaluation is missing or torn.
    """
    body = json.loads((artifacts.fetch(result) / "results.json").read_text(encoding="utf-8"))
    return [float(ratio) for ratio in body["speed"].get("ratios", ())]


def load_samples(result: EvalResult | BenchmarkRef) -> list[dict[str, Any]]:
    """The records of an evaluation's ``samples.jsonl``.

    Raises:
        ArtifactError: the evaluation is missing or torn.
        ComparisonError: a document stands there twice.
    """
    text = (artifacts.fetch(result) / "samples.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.split("\n")[:-1]]
    counted = Counter((str(record.get("benchmark", "")), record.get("doc_id")) for record in records)
    if twice := [document for document, times in counted.items() if times > 1]:
        name, number = twice[0]
        raise ComparisonError(
            f"{result.uri}: document {number} of benchmark {name!r} was judged twice; "
            "remove that folder and run the same command again"
        )
    return records


def paired(baseline: Sequence[Mapping[str, Any]], candidate: Sequence[Mapping[str, Any]], metric: str = "score") -> Paired:
    """Compare two evaluations of one suite, sample by sample; benchmarks weigh the same, however many samples they have.

    Args:
        baseline, candidate: records of ``samples.jsonl``, in any order.
        metric: the score compared.

    Raises:
        ComparisonError: they judged different samples, or none, or lack the metric.
    """
    before, after = _scores(baseline, metric), _scores(candidate, metric)
    common = before.keys() & after.keys()
    if before.keys() != after.keys() or not before:
        raise ComparisonError(
            f"the baseline has {len(before)} samples, the candidate {len(after)}, {len(common)} in common: "
            "evaluate both on the same dataset with the same max_samples"
        )
    if changed := sorted(document for document in common if before[document][0] != after[document][0]):
        name, number = changed[0]
        raise ComparisonError(
            f"{len(changed)} documents have other references, first document {number} of benchmark {name!r}: "
            "evaluate both on the same dataset"
        )
    differences: dict[str, list[float]] = {}
    for document in before:
        differences.setdefault(document[0], []).append(after[document][1] - before[document][1])
    groups = list(differences.values())
    single = [difference for group in groups for difference in group]
    wins, losses = sum(d > 0 for d in single), sum(d < 0 for d in single)
    stderr = math.sqrt(math.fsum(standard_error(group) ** 2 for group in groups)) / len(groups)
    return Paired(
        difference=math.fsum(math.fsum(group) / len(group) for group in groups) / len(groups),
        stderr=stderr,
        wins=wins,
        losses=losses,
        p_value=sign_test(wins, losses),
        smallest_detectable=min(1.0, max(_POWER * stderr, _FEWEST_DISCORDANT / len(single))),
        num_samples=len(single),
    )


def _scores(records: Sequence[Mapping[str, Any]], metric: str) -> dict[Document, tuple[str, float]]:
    """Reference and score of every document; benchmarks that score no single sample are left out.

    Raises:
        ComparisonError: a record lacks what is compared.
    """
    found: dict[Document, tuple[str, float]] = {}
    try:
        for record in records:
            if record[metric] is None:
                continue
            document = (str(record.get("benchmark", "")), int(record["doc_id"]))
            found[document] = (str(record["reference"]), float(record[metric]))
    except KeyError as error:
        raise ComparisonError(f"a sample record has no {error}; is it from another suite?") from error
    return found


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of ``wins`` against ``losses`` under a fair coin, from the binomial distribution."""
    trials = wins + losses
    scale = math.lgamma(trials + 1) - trials * math.log(2)
    chances = (math.exp(scale - math.lgamma(k + 1) - math.lgamma(trials - k + 1)) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * math.fsum(chances))


def on_frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each (speed-up, accuracy): no other point is at least as good in both and better in one."""
    places = set(points)
    return [
        not any(faster >= speed and better >= accuracy and (faster, better) != (speed, accuracy) for faster, better in places)
        for speed, accuracy in points
    ]


def source_of(results: Sequence[EvalResult]) -> EvalResult:
    """The autoregressive source among the results.

    Raises:
        ComparisonError: there is none, or more than one.
    """
    sources = [result for result in results if result.model.stage == "source"]
    if len(sources) != 1:
        raise ComparisonError(f"a comparison needs exactly one source model among the results, got {len(sources)}")
    return sources[0]
