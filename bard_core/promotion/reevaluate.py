"""Re-evaluation: which versions lack a score under the suite as it is now, who judges them, and what came of it.

However many triggers fire, a version is judged by whoever gets its claim; the others find nothing to do. A version whose folder
is gone is left out and tagged with the reason; it stops none of the others.

    python -m bard_core.promotion.reevaluate configs/reevaluate/lab.yaml     # prints the comparison; exits 1 on a regression
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from bard_core.config.strict import StrictModel
from bard_core.evaluation.evaluate import protocol_digest
from bard_core.promotion.comparison import comparison, left_out, markdown
from bard_core.promotion.promote import CHAMPION, promote
from bard_core.promotion.request import LEFT_OUT, Request, results_of
from bard_core.store import artifacts, claims, storage
from bard_core.store.claims import Claim
from bard_core.store.refs import DatasetRef, EvalResult, ModelRef
from bard_core.tracking import Version, describe_versions, evaluation_of, tag_version, tracking_uri, versions


class Pending(StrictModel):
    """A version to judge, and the claim to do it."""

    number: int
    model: ModelRef
    source: ModelRef
    dataset: DatasetRef
    claim: Claim


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
    """Claim every version in scope that lacks a score; those claimed by another are left to it, broken ones tagged."""
    pending = []
    scope = _scope(request)
    results, faults = results_of(request, scope)
    unjudged = [version for version in scope if version.number not in results and version.number not in faults]
    faults |= {version.number: fault for version in unjudged if (fault := _fault(version)) is not None}
    for version in scope:
        _tag(request, version, faults.get(version.number, ""))
    for version in unjudged:
        if version.number in faults:
            continue
        protocol = protocol_digest(request.evaluation, version.dataset)
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


def _fault(version: Version) -> str | None:
    """Why a version cannot be judged, if so: a folder that it needs is gone, torn or another's."""
    for what, ref in (("model", version.model), ("source", version.source), ("dataset", version.dataset)):
        try:
            found = artifacts.verify(ref.uri, hashes=False)
        except (artifacts.ArtifactError, storage.StorageError) as error:
            return f"its {what} cannot be read: {error}"
        if found.digest != ref.key:
            return f"its {what} cannot be read: {ref.uri} holds another artifact by now"
    return None


def _tag(request: Request, version: Version, fault: str) -> None:
    if fault:
        print(f"version {version.number} ({version.model.name}) is left out: {fault}", flush=True)
    if fault != version.tags.get(LEFT_OUT, ""):
        tag_version(request.tracking, version.number, {LEFT_OUT: fault})


def conclude(request: Request, only: Collection[str] = (), parent_run: str | None = None) -> dict[int, str]:
    """Put the scored versions in scope through the gate, oldest first, until no alias moves; returns the new decisions.

    The source is not put through: it is what all others are held against.

    Args:
        only: keys of the models to decide about; empty: all.
        parent_run: see ``promote``.
    """
    said: dict[int, str] = {}
    scope = [v for v in _scope(request) if not only or v.model.key in only]
    results, _ = results_of(request, scope)
    gated = sorted(v.number for v in scope if v.number in results and v.model.stage != "source")
    moved = True
    while moved:
        moved = False
        for number in gated:
            try:
                decision = promote(number, request.evaluation, request.gate, request.storage_config, request.tracking, parent_run)
            except (artifacts.ArtifactError, storage.StorageError) as error:
                print(f"version {number} could not be put through the gate: {error}", flush=True)
                continue
            if decision is not None:
                said[number] = f"{'promoted' if decision.passed else 'held'}: {decision.reason}"
                moved |= decision.passed
    _describe(request, results)
    return said


def _describe(request: Request, results: Mapping[int, EvalResult]) -> None:
    """Every judged version says its scores, its parent and what the gate made of it."""
    known = versions(request.tracking)
    names = {version.model.key: f"{version.model.name} (version {version.number})" for version in known}
    words = {}
    for version in known:
        if (result := results.get(version.number)) is None:
            continue
        score = f"{100 * result.accuracy:.1f} ± {100 * result.accuracy_stderr:.1f} % on {result.suite}, {result.speedup:.2f}x the"
        parent = names.get(version.model.parent_sha256 or "", (version.model.parent_sha256 or "nothing")[:12])
        lines = [f"{version.model.name}: {score} source's speed, {result.tokens_per_forward:.2f} tokens a forward."]
        lines.append("All others are held against it." if version.model.stage == "source" else f"Trained from {parent}.")
        if gate := version.tags.get("bard.gate"):
            lines.append(f"{gate.capitalize()}: {version.tags.get('bard.gate.reason', '')}.")
        words[version.number] = "\n\n".join(lines)
    describe_versions(request.tracking, words, known)


def standing(request: Request, only: Collection[str] = ()) -> str:
    """Who is champion and why, and why not each of the others; ``only``: keys of the models to speak of, empty: all."""
    known = versions(request.tracking)
    lines = [
        f"Held: {v.model.name} (version {v.number}): {v.tags.get('bard.gate.reason', '')}"
        for v in known
        if v.tags.get("bard.gate") == "held" and CHAMPION not in v.aliases and (not only or v.model.key in only)
    ]
    for champion in known:
        if CHAMPION in champion.aliases:
            ungated = "no version has passed the gate yet" if champion.model.stage == "source" else "the alias was set by hand"
            why = champion.tags.get("bard.gate.reason") or ungated
            lines.append(f"Champion: {champion.model.name} (version {champion.number}): {why}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Print the comparison; 1 on a regression, 2 when there is nothing to compare or what it was given is at fault."""
    if len(arguments) != 1:
        print("usage: python -m bard_core.promotion.reevaluate <a file of configs/reevaluate/>", file=sys.stderr)
        return 2
    try:
        request = Request.read(Path(arguments[0]))
    except (OSError, ValueError) as error:
        print(f"reevaluation: {arguments[0]}: {error}", file=sys.stderr)
        return 2
    lines = comparison(request)
    if not lines:
        place = f"{request.tracking.registered_model!r} at {tracking_uri(request.tracking)}"
        count = len(versions(request.tracking))
        print(
            f"reevaluation: none of {count} versions of {place} has a score under suite {request.evaluation.suite!r}: "
            "see tracking.tracking_uri and tracking.registered_model, and that the pipeline has registered what it trained",
            file=sys.stderr,
        )
        return 2
    print(markdown(lines, left_out(request)), end="")
    return 1 if any(line.regression for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
