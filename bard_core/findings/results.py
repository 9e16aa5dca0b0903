"""What the pieces of a claim found, brought together as plain values: numbers a seed, comparisons, and the verdict."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bard_core.config.file import shown
from bard_core.config.sections.storage import StorageConfig
from bard_core.findings.forwards import at_forwards
from bard_core.findings.judge import AUTOREGRESSIVE, point_of
from bard_core.findings.lengths import by_length
from bard_core.findings.pieces import BlockTraining, Distillation, Recipe, recipe
from bard_core.findings.spec import SOURCE, Claim, Comparison, Side
from bard_core.findings.verdict import Outcome, Verdict, judged, sample_error, together
from bard_core.findings.work import found
from bard_core.report import machine
from bard_core.store import artifacts
from bard_core.tracking import provenance

FLOPS_APART = 0.05  # how much two runs' FLOPs may differ and still count as equal
Body = dict[str, Any]


def results_of(claim: Claim, at: StorageConfig = StorageConfig()) -> Body:
    """A claim's results as far as its pieces were done; what was not is named under ``missing``."""
    variants: dict[str, Body] = {}
    judgements: dict[tuple[str, int, str], Body] = {}
    images = None
    for variant in claim.variants:
        seeds: dict[str, Body] = {}
        missing: list[str] = []
        for seed in claim.seeds:
            one = recipe(claim, variant, seed)
            done = {piece.key: body for piece in one.pieces if (body := found(piece, at)) is not None}
            missing += [piece.name for piece in one.pieces if piece.key not in done]
            here = {model: done[key] for model, key in one.judged.items() if key in done}
            judgements |= {(variant, seed, model): body for model, body in here.items()}
            images = next((len(body["answers"]) for body in here.values()), images)
            seeds[str(seed)] = {
                "trained": {model: _spent(one, done, key) for model, key in one.trained.items() if key in done},
                "judged": {model: _points(body) for model, body in here.items()},
                "lengths": {model: by_length(body) for model, body in here.items()},
            }
        config = claim.pipeline(variant, claim.seeds[0])
        sections = {name: getattr(config, name) for name in ("data", "source", "pbm", "swd", "evaluation")}
        variants[variant] = {
            "settings": claim.variants[variant],
            "config_digest": artifacts.digest(shown(sections)),
            "seeds": seeds,
            "missing": sorted({*missing}),
        }
    among = sum(one.decides for one in claim.comparisons) if claim.rule == "any" else 1
    compared = [_compared(claim, comparison, variants, judgements, among) for comparison in claim.comparisons]
    return {
        "claim": claim.name,
        "number": claim.number,
        "question": claim.question,
        "verdict": together([one["verdict"] for one in compared if one["decides"]], claim.rule),
        "rule": claim.rule,
        "configuration": claim.configuration,
        "settings": claim.settings,
        "held_out": claim.held_out,
        "images": images,
        "thresholds": list(claim.thresholds),
        "seeds": list(claim.seeds),
        "comparisons": compared,
        "variants": variants,
        "notes": claim.notes,
        "commit": provenance()["git_commit"],
        "machine": machine.describe(),
    }


def write_results(claims: Sequence[Claim], folder: Path, at: StorageConfig = StorageConfig()) -> list[Body]:
    """Write ``<claim>.json`` of each of these claims; returns what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    bodies = [results_of(claim, at) for claim in claims]
    for body in bodies:
        (folder / f"{body['claim']}.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return bodies


def _points(judgement: Mapping[str, Any]) -> Body:
    """Its numbers by point of decoding, without the single samples."""
    kept = ("accuracy", "fields", "tokens_per_forward", "speedup")
    return {
        name: {**{metric: point[metric] for metric in kept}, "end_to_end_speedup": point["speed"]["end_to_end_speedup"]}
        for name, point in judgement["points"].items()
    }


def _spent(one: Recipe, done: Mapping[str, Body], key: str) -> Body:
    """What a model cost: its own run, and all conversion that led to it, its teacher's too, the source's training left out."""
    pieces = {piece.key: piece for piece in one.pieces}
    waiting, path = [key], set[str]()
    while waiting:
        if (at := waiting.pop()) not in path and isinstance(pieces[at], BlockTraining | Distillation):
            path.add(at)
            waiting += pieces[at].needs
    own = {name: done[key][name] for name in ("run_digest", "steps", "flops", "seconds", "threads")}
    runs = [done[at] for at in path if at in done]
    totals = {f"total_{name}": sum(run[name] for run in runs) for name in ("steps", "flops", "seconds")}
    return {**own, **totals}


def _compared(
    claim: Claim,
    comparison: Comparison,
    variants: Mapping[str, Body],
    judgements: Mapping[tuple[str, int, str], Body],
    among: int,
) -> Body:
    """One comparison over the seeds that both sides have."""

    def point(side: Side, seed: int) -> Body | None:
        body = judgements.get((side.variant, seed, side.model))
        name = AUTOREGRESSIVE if side.model == SOURCE else point_of(side.threshold)
        return body["points"].get(name) if body else None

    def against(seed: int) -> tuple[Body | None, Body | None]:
        mine, theirs = point(comparison.candidate, seed), point(comparison.baseline, seed)
        if comparison.equal == "forwards" and mine is not None and theirs is not None:
            side = comparison.baseline
            theirs = at_forwards(judgements[side.variant, seed, side.model]["points"], mine["tokens_per_forward"])
        return mine, theirs

    both = {seed: against(seed) for seed in claim.seeds}
    pairs = {seed: (mine, theirs) for seed, (mine, theirs) in both.items() if mine is not None and theirs is not None}
    body = {**comparison.model_dump(mode="json"), "level": among}
    if not pairs:
        return {**body, "verdict": "not run", "differences": {}}
    spent = [_spent_by(side, variants, [*pairs]) for side in (comparison.candidate, comparison.baseline)]
    differences = {str(seed): mine[comparison.metric] - theirs[comparison.metric] for seed, (mine, theirs) in pairs.items()}
    error = 0.0
    if comparison.metric == "accuracy":
        right = [[pair[side]["samples"]["right"] for pair in pairs.values()] for side in (0, 1)]
        error = sample_error(*right)
    outcome = judged([*differences.values()], error, comparison.margin, among)
    apart = _apart(comparison, *spent)
    verdict: Verdict = "not comparable" if apart else outcome.verdict
    sides = {
        name: fmean(pair[at][comparison.metric] for pair in pairs.values())
        for at, name in enumerate(("candidate_mean", "baseline_mean"))
    }
    return {**body, **sides, "differences": differences, "spent": spent, "apart": apart, **_plain(outcome), "verdict": verdict}


def _plain(outcome: Outcome) -> Body:
    """Without infinities, which JSON has not: None, where one seed gives no interval."""
    ends = {name: value if abs(value) < float("inf") else None for name, value in (("low", outcome.low), ("high", outcome.high))}
    return {"mean": outcome.mean, **ends}


def _spent_by(side: Side, variants: Mapping[str, Body], seeds: Sequence[int]) -> Body:
    runs = [variants[side.variant]["seeds"][str(seed)]["trained"][side.model] for seed in seeds]
    return {name: fmean(run[f"total_{name}"] for run in runs) for name in ("steps", "flops")}


def _apart(comparison: Comparison, mine: Body, theirs: Body) -> str:
    """Why the two did not spend the same, where the comparison says they did."""
    if comparison.equal == "steps" and mine["steps"] != theirs["steps"]:
        return f"{mine['steps']:.0f} steps against {theirs['steps']:.0f}"
    ratio = mine["flops"] / max(theirs["flops"], 1.0)
    if comparison.equal == "flops" and abs(ratio - 1) > FLOPS_APART:
        return f"{ratio:.2f} times the training FLOPs"
    return ""
