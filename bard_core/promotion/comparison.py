"""Every scored version beside the one of its name before it: a table, its facts, and what is a regression."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bard_core.config.sections.evaluation import GateConfig
from bard_core.evaluation.compare import ComparisonError, Paired, load_samples, paired
from bard_core.promotion.request import LEFT_OUT, Request, results_of
from bard_core.store.refs import EvalResult
from bard_core.tracking import Version, versions


@dataclass(frozen=True)
class Line:
    """One scored version. ``before`` is the version of the same name that was registered last before it."""

    version: Version
    result: EvalResult
    before: int | None
    against_before: Paired | None
    regression: str | None


def comparison(request: Request) -> list[Line]:
    """Every scored version that can be read, by number, and where one is worse than the one of its name before it."""
    lines: list[Line] = []
    newest: dict[str, Line] = {}
    known = versions(request.tracking)
    results, _ = results_of(request, known)
    for version in known:
        if version.number not in results:
            continue
        line = _against(version, results[version.number], newest.get(version.model.name), request.gate)
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


def left_out(request: Request) -> list[str]:
    """A line for every version that cannot be judged or gated, as the last plan found it."""
    return [
        f"- version {version.number} ({version.model.name}): {version.tags[LEFT_OUT]}"
        for version in versions(request.tracking)
        if version.tags.get(LEFT_OUT)
    ]


def markdown(lines: Sequence[Line], left_out: Sequence[str] = ()) -> str:
    """The comparison as a table, regressions and what was left out below it."""
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
    text += "\n\n" + ("\n".join(["**Regressions**", "", *worse]) if worse else "No regression.") + "\n"
    return text + ("\n".join(["", "**Left out**", "", *left_out]) + "\n" if left_out else "")


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
