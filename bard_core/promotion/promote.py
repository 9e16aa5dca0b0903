"""promote: put a judged version through the gate and move the aliases, one at a time whoever asks.

``champion`` is what serves; without one, the source model is, until something beats it. ``challenger`` is the version judged
last that did not pass. Every decision is kept: a run with ``decision.json``, and tags on the version.
"""

import json
import tempfile
from pathlib import Path

from bard_core.config.sections.evaluation import EvaluationConfig, GateConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.evaluation.evaluate import load_result, protocol_digest
from bard_core.promotion.gate import Decision, Judged, decide
from bard_core.store import artifacts, claims, storage
from bard_core.store.refs import EvalResult, ModelRef
from bard_core.tracking import Version, evaluation_of, register, set_alias, stage_run, tag_version, versions

CHAMPION, CHALLENGER = "champion", "challenger"


class PromotionError(Exception):
    """A version cannot be put through the gate: says why."""


def score_of(tracking: TrackingConfig, version: Version, evaluation: EvaluationConfig) -> EvalResult | None:
    """A version's result under the evaluation asked for, if it has one.

    Raises:
        ArtifactError: it has one, which is gone or torn.
    """
    return _score(tracking, version.model, protocol_digest(evaluation, version.dataset))


def _score(tracking: TrackingConfig, model: ModelRef, protocol: str) -> EvalResult | None:
    found = evaluation_of(tracking, model.key, protocol)
    return None if found is None else load_result(*found, model)


def promote(
    number: int,
    evaluation: EvaluationConfig,
    gate: GateConfig,
    storage_config: StorageConfig,
    tracking: TrackingConfig,
    parent_run: str | None = None,
) -> Decision | None:
    """Decide about a version, move aliases and store the decision; None where the same decision was taken before.

    Args:
        parent_run: the pipeline's run, below which the decision is kept; None: by itself.

    Raises:
        PromotionError: there is no such version, or it was not judged yet.
        ArtifactError: an evaluation that is needed is gone or torn.
    """
    lock = storage.join(storage.root_uri(storage_config), "claims", f"registry-{tracking.registered_model}")
    with claims.exclusive(lock, timeout_s=300.0) as claim:
        known = {version.number: version for version in versions(tracking)}
        if number not in known:
            raise PromotionError(f"no version {number} of {tracking.registered_model!r}; there are: {sorted(known)}")
        version = known[number]
        champion = next((v for v in known.values() if CHAMPION in v.aliases), None)
        if champion is None:
            first = register(tracking, version.source, version.source, version.dataset)
            set_alias(tracking, CHAMPION, first)
            champion = next(v for v in versions(tracking) if v.number == first)
        if version.number == champion.number:
            return None
        result, best = (score_of(tracking, one, evaluation) for one in (version, champion))
        if result is None:
            raise PromotionError(f"version {number} ({version.model.name}) has no score under this suite: evaluate it first")
        base = _score(tracking, version.source, protocol_digest(evaluation, version.dataset))
        key = artifacts.digest([result.key, champion.model.key, *(one.key if one else None for one in (best, base)), gate])
        if version.tags.get("bard.gate.key") == key:
            return None
        decision = _decide(result, best, base, champion, gate)
        claims.renew(claim)  # who lost the lock must not move an alias
        _move_aliases(tracking, version, decision)
        _store(tracking, version, champion, decision, key, parent_run)
        return decision


def _decide(
    result: EvalResult, best: EvalResult | None, base: EvalResult | None, champion: Version, gate: GateConfig
) -> Decision:
    if best is None or base is None:
        who = f"champion, version {champion.number}," if best is None else "source"
        reason = f"the {who} has no score under this suite; evaluate it, then decide again"
        return Decision(passed=False, reasons=(reason,), evidence={"suite": result.suite})
    return decide(Judged.read(result), Judged.read(best), Judged.read(base), gate)


def _move_aliases(tracking: TrackingConfig, version: Version, decision: Decision) -> None:
    if not decision.passed:
        set_alias(tracking, CHALLENGER, version.number)
        return
    set_alias(tracking, CHAMPION, version.number)
    if CHALLENGER in version.aliases:
        set_alias(tracking, CHALLENGER, None)


def _store(
    tracking: TrackingConfig, version: Version, champion: Version, decision: Decision, key: str, parent_run: str | None
) -> None:
    name = f"gate {version.model.name} v{version.number}"
    body = {"version": version.number, "against": champion.number, "reason": decision.reason, **decision.model_dump(mode="json")}
    with tempfile.TemporaryDirectory() as scratch, stage_run(tracking, parent_run, "gate", name, {}) as run:
        path = Path(scratch) / "decision.json"
        path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        run.log_file(path)
    tags = {
        "bard.gate": "promoted" if decision.passed else "held",
        "bard.gate.reason": decision.reason,
        "bard.gate.against": str(champion.number),
        "bard.gate.run": run.run_id or "",
        "bard.gate.key": key,
    }
    tag_version(tracking, version.number, tags)
