"""Re-evaluation: which versions lack a score under the suite as it is now, who judges them, and what came of it.

However many triggers fire, a version is judged by whoever gets its claim; the others find nothing to do.

    python -m bard_core.promotion.reevaluate configs/reevaluate/lab.yaml     # prints the comparison; exits 1 on a regression
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bard_core.config.file import read_yaml
from bard_core.config.sections import ComputeConfig, EvaluationConfig, GateConfig, StorageConfig, TrackingConfig
from bard_core.config.strict import StrictModel
from bard_core.evaluation.compare import ComparisonError, Paired, load_samples, paired
from bard_core.evaluation.evaluate import protocol_digest
from bard_core.promotion.promote import CHAMPION, promote, score_of
from bard_core.store import artifacts, claims, storage
from bard_core.store.claims import Claim
from bard_core.store.refs import DatasetRef, EvalResult, ModelRef
from bard_core.tracking import Version, evaluation_of, versions


class Pending(StrictModel):
    """A version to judge, and the claim to do it."""

    number: int
    model: ModelRef
    source: ModelRef
    dataset: DatasetRef
    claim: Claim


class Request(StrictModel):
    """A re-evaluation's inputs, as its YAML has them. ``version`` 0 means every version that lacks a score."""

    evaluation: EvaluationConfig
    gate: GateConfig = GateConfig()
    version: int = 0
    compute: ComputeConfig = ComputeConfig()
    storage_config: StorageConfig = StorageConfig()
    tracking: TrackingConfig = TrackingConfig()

    @classmethod
    def read(cls, path: Path) -> "Request":
        """Raises ValueError when it is not YAML, or naming each fault; OSError when there is no such file."""
        return cls.model_validate(read_yaml(path))


def _scope(request: Request) -> list[Version]:
    """The version asked for with those it is compared with, or all."""
    known = versions(request.tracking)
    if request.version == 0:
        return known
    asked = [version for version in known if version.number == request.version]
    if not asked:
        numbers = ", ".join(str(version.number) for version in known) or "none"
        print(f"no version {request.version} of {request.tracking.registered_model!r}; there are: {numbers}", flush=True)
        return []
    baselines = {asked[0].source.key}
    return [v for v in known if v.number == request.version or v.model.key in baselines or CHAMPION in v.aliases]


def plan(request: Request) -> list[Pending]:
    """Claim every version in scope that lacks a score; those claimed by another are left to it."""
    pending = []
    for version in _scope(request):
        protocol = protocol_digest(request.evaluation, version.dataset)
        if evaluation_of(request.tracking, version.model.key, protocol) is not None:
            continue
        place = storage.join(storage.root_uri(request.storage_config), "claims")
        name = f"evaluate-{version.model.key[:16]}-{protocol[:16]}"
        claim = claims.take(storage.join(place, name), lease_s=claims.HANDOVER_S)
        if claim is None:
            print(f"version {version.number} ({version.model.name}) is being judged by another", flush=True)
        elif evaluation_of(request.tracking, version.model.key, protocol) is not None:
            claims.release(claim)  # scored between the two looks
        else:
            refs = {"model": version.model, "source": version.source, "dataset": version.dataset}
            pending.append(Pending(number=version.number, claim=claim, **refs))
    return pending


def conclude(request: Request) -> dict[int, str]:
    """Put every scored version in scope through the gate, oldest first; returns the new decisions by version."""
    said: dict[int, str] = {}
    for version in _scope(request):
        if score_of(request.tracking, version, request.evaluation) is None:
            continue
        decision = promote(version.number, request.evaluation, request.gate, request.storage_config, request.tracking)
        if decision is not None:
            said[version.number] = f"{'promoted' if decision.passed else 'held'}: {decision.reason}"
    return said


@dataclass(frozen=True)
class Line:
    """One scored version. ``before`` is the version of the same name that was registered last before it."""

    version: Version
    result: EvalResult
    before: int | None
    against_before: Paired | None
    regression: str | None


def comparison(request: Request) -> list[Line]:
    """Every scored version, by number, and where one is worse than the one of its name before it."""
    lines: list[Line] = []
    newest: dict[str, Line] = {}
    for version in versions(request.tracking):
        result = score_of(request.tracking, version, request.evaluation)
        if result is None:
            continue
        line = _against(version, result, newest.get(version.model.name), request.gate)
        newest[version.model.name] = line
        lines.append(line)
    return lines


def _against(version: Version, result: EvalResult, old: Line | None, gate: GateConfig) -> Line:
    """A regression is a loss beyond the margin that is no chance (p < 0.05), or a benchmark that no longer runs."""
    if result.missing:
        return Line(version, result, None, None, f"no score for {', '.join(result.missing)}")
    if old is None:
        return Line(version, result, None, None, None)
    try:
        found = paired(load_samples(old.result), load_samples(result))
    except ComparisonError:
        return Line(version, result, old.version.number, None, None)  # other data: nothing to hold against it
    lost = -found.difference > gate.accuracy_margin and found.p_value < 0.05
    words = f"{100 * found.difference:+.1f} points against version {old.version.number} (p = {found.p_value:.2g})"
    return Line(version, result, old.version.number, found, words if lost else None)


HEAD = ("version", "model", "accuracy", "TPF", "tok/s", "speed-up", "aliases", "against the one before", "gate")


def markdown(lines: Sequence[Line]) -> str:
    """The comparison as a table, regressions below it."""
    table = [HEAD, ("---",) * len(HEAD)]
    for line in lines:
        result, found = line.result, line.against_before
        before = f"{100 * found.difference:+.1f} ± {100 * found.stderr:.1f} (v{line.before})" if found else ""
        gate = ": ".join(part for part in (line.version.tags.get(f"bard.gate{key}", "") for key in ("", ".reason")) if part)
        table.append(
            (
                str(line.version.number),
                line.version.model.name,
                f"{100 * result.accuracy:.1f} ± {100 * result.accuracy_stderr:.1f} %",
                f"{result.tokens_per_forward:.2f}",
                f"{result.tokens_per_s:.0f}",
                f"{result.speedup:.2f}x",
                ", ".join(line.version.aliases),
                before,
                gate.replace("|", "/"),
            )
        )
    text = "\n".join("| " + " | ".join(row) + " |" for row in table)
    worse = [f"- version {bad.version.number} ({bad.version.model.name}): {bad.regression}" for bad in lines if bad.regression]
    return f"{text}\n\n" + ("\n".join(["**Regressions**", "", *worse]) if worse else "No regression.") + "\n"


def main(arguments: Sequence[str]) -> int:
    """Print the comparison; 1 on a regression, 2 when what it was given is at fault."""
    if len(arguments) != 1:
        print("usage: python -m bard_core.promotion.reevaluate <a file of configs/reevaluate/>", file=sys.stderr)
        return 2
    try:
        request = Request.read(Path(arguments[0]))
    except (OSError, ValueError) as error:
        print(f"reevaluation: {arguments[0]}: {error}", file=sys.stderr)
        return 2
    lines = comparison(request)
    print(markdown(lines), end="")
    return 1 if any(line.regression for line in lines) else 0


def facts(lines: Sequence[Line]) -> str:
    """The comparison as JSON, every number unrounded."""
    return json.dumps(
        [
            {
                "version": line.version.number,
                "result": line.result.model_dump(mode="json"),
                "aliases": line.version.aliases,
                "before": line.before,
                "against_before": vars(line.against_before) if line.against_before else None,
                "regression": line.regression,
            }
            for line in lines
        ],
        indent=2,
    )


def key_of(lines: Sequence[Line]) -> str:
    """Names this state of affairs: the same results, aliases and decisions are the same comparison."""
    return artifacts.digest([[line.result.key, list(line.version.aliases), dict(line.version.tags)] for line in lines])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
