"""Promotion and re-evaluation on a real sqlite registry: aliases move through the gate alone, one at a time, with a reason."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bard_core import tracking
from bard_core.config.sections.evaluation import EvaluationConfig, GateConfig
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.promotion import comparison, reevaluate
from bard_core.promotion import promote as promotion
from bard_core.promotion.request import LEFT_OUT, Request
from bard_core.store import claims, storage

EVALUATION = EvaluationConfig()
STORAGE = StorageConfig()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all: making a store takes seconds."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def config(store: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TrackingConfig:
    monkeypatch.setenv("BARD_HOME", str(store))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return TrackingConfig(experiment=request.node.name, registered_model=request.node.name)


def promote(config: TrackingConfig, number: int, gate: GateConfig = GateConfig()) -> Any:
    return promotion.promote(number, EVALUATION, gate, STORAGE, config)


def aliases(config: TrackingConfig) -> dict[str, int]:
    return {alias: version.number for version in tracking.versions(config) for alias in version.aliases}


def test_aliases_move_through_the_gate_and_decisions_are_kept(config: TrackingConfig, judge: Any) -> None:
    source = judge.register(config, EVALUATION, judge.source, right=950, speedup=1.0)
    slow = judge.register(config, EVALUATION, judge.model("pbm", 4), right=950, speedup=0.9)
    good = judge.register(config, EVALUATION, judge.model("pbm", 8), right=948, speedup=2.0)
    worse = judge.register(config, EVALUATION, judge.model("swd", 32), right=700, speedup=4.0)

    assert not promote(config, slow).passed
    assert aliases(config) == {"champion": source, "challenger": slow}, "the source serves until something beats it"
    assert promote(config, good).passed
    assert aliases(config) == {"champion": good, "challenger": slow}
    assert not promote(config, worse).passed
    assert aliases(config) == {"champion": good, "challenger": worse}
    assert promote(config, worse) is None and promote(config, good) is None, "decided before"

    found = {version.number: version.tags for version in tracking.versions(config)}
    assert (found[good]["bard.gate"], found[good]["bard.gate.against"]) == ("promoted", str(source))
    assert found[worse]["bard.gate"] == "held" and "-24.8 points against the champion" in found[worse]["bard.gate.reason"]
    client, _ = tracking.client_of(config)
    local = client.download_artifacts(found[worse]["bard.gate.run"], "decision.json")
    evidence = json.loads(Path(local).read_text())
    assert (evidence["version"], evidence["against"], evidence["passed"]) == (worse, good, False)
    assert evidence["evidence"]["paired"]["champion"]["losses"] == 248

    assert promote(config, worse, GateConfig(accuracy_margin=0.3)).passed, "another gate is another question"
    assert aliases(config) == {"champion": worse}
    with pytest.raises(promotion.PromotionError, match="no version 99"):
        promote(config, 99)
    unjudged = tracking.register(config, judge.model("pbm", 16), judge.source, judge.dataset)
    with pytest.raises(promotion.PromotionError, match="has no score under this suite"):
        promote(config, unjudged)


def test_a_version_is_its_weights_and_is_registered_once(config: TrackingConfig, judge: Any) -> None:
    model = judge.model("pbm", 4)
    gate = threading.Barrier(3)

    def register(_: int) -> int:
        gate.wait()
        return tracking.register(config, model, judge.source, judge.dataset)

    with ThreadPoolExecutor(3) as pool:
        numbers = set(pool.map(register, range(3)))
    assert len(numbers) == 1
    (version,) = tracking.versions(config)
    assert (version.number, version.model, version.source, version.dataset) == (*numbers, model, judge.source, judge.dataset)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    again = model.model_copy(update={"manifest_sha256": "e" * 64})
    assert tracking.register(config, again, judge.source, judge.dataset) not in numbers, "new weights at an old path"


def test_concurrent_promotions_leave_the_best_as_champion(config: TrackingConfig, judge: Any) -> None:
    """Each alone would beat the source. Whatever the order, the slower one cannot replace the faster one."""
    judge.register(config, EVALUATION, judge.source, right=950, speedup=1.0)
    numbers = [judge.register(config, EVALUATION, judge.model("pbm", 4), right=950, speedup=s) for s in (1.5, 3.0, 2.0)]
    with ThreadPoolExecutor(3) as pool:
        decisions = list(pool.map(lambda number: promote(config, number), numbers))
    assert aliases(config)["champion"] == numbers[1] and decisions[1].passed
    against = {v.number: int(v.tags["bard.gate.against"]) for v in tracking.versions(config) if "bard.gate" in v.tags}
    promoted = [n for n in numbers if {v.number: v for v in tracking.versions(config)}[n].tags["bard.gate"] == "promoted"]
    chain = numbers[1]
    for _ in promoted:  # every champion beat the one before it, back to the source
        chain = against[chain]
    assert chain == 1


def test_a_champion_without_a_score_under_this_suite_stops_the_gate(config: TrackingConfig, judge: Any) -> None:
    number = judge.register(config, EVALUATION, judge.model("pbm", 4), right=950, speedup=3.0)
    decision = promote(config, number)
    assert not decision.passed and "the champion, version 2, has no score under this suite; evaluate it" in decision.reason
    judge.register(config, EVALUATION, judge.source, right=950, speedup=1.0)
    assert promote(config, number).passed, "evaluated, and decided again"


def test_what_lacks_a_score_is_claimed_once(config: TrackingConfig, judge: Any) -> None:
    judge.register(config, EVALUATION, judge.source, right=950, speedup=1.0)
    number = tracking.register(config, judge.model("pbm", 4), judge.source, judge.dataset)
    request = Request(evaluation=EVALUATION, tracking=config)
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda _: reevaluate.plan(request), range(4)))
    (pending,) = [item for plan in plans for item in plan]
    assert pending.number == number
    claims.release(pending.claim)
    model = {version.number: version for version in tracking.versions(config)}[number].model
    judge.register(config, EVALUATION, model, right=900, speedup=2.0)
    assert reevaluate.plan(request) == []
    other = request.model_copy(update={"evaluation": EvaluationConfig(max_samples=4)})
    assert [item.number for item in reevaluate.plan(other)] == [1, 2], "another suite is another score"
    assert reevaluate.plan(request.model_copy(update={"version": 77})) == []


def test_versions_whose_folders_are_gone_are_tagged_and_the_others_judged_and_gated(
    config: TrackingConfig, judge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.register(config, EVALUATION, judge.source, right=950, speedup=1.0)
    gone, torn, fine = judge.model("pbm", 4), judge.model("pbm", 8), judge.model("pbm", 16)
    numbers = [tracking.register(config, model, judge.source, judge.dataset) for model in (gone, torn, fine)]
    good = judge.register(config, EVALUATION, judge.model("swd", 8), right=950, speedup=2.0)
    lost = judge.register(config, EVALUATION, judge.model("swd", 16), right=950, speedup=3.0)
    shutil.move(gone.uri, tmp_path / "aside")
    (Path(torn.uri) / "file").write_text("")
    evaluation = promotion.score_of(config, {v.number: v for v in tracking.versions(config)}[lost], EVALUATION)
    assert evaluation is not None
    shutil.rmtree(evaluation.uri)

    request = Request(evaluation=EVALUATION, tracking=config)
    (pending,) = reevaluate.plan(request)
    assert pending.number == numbers[2]
    said = reevaluate.conclude(request)
    assert said[good].startswith("promoted") and aliases(config)["champion"] == good and lost not in said
    told = capsys.readouterr().out
    assert f"version {numbers[0]} (pbm-b4) is left out: its model cannot be read: {gone.uri} has no manifest.json" in told
    tags = {version.number: version.tags.get(LEFT_OUT, "") for version in tracking.versions(config)}
    assert [bool(tags[number]) for number in (*numbers, good, lost)] == [True, True, False, False, True]
    assert "it was cut" in tags[numbers[1]] and "its evaluation cannot be read" in tags[lost]
    text = comparison.markdown(comparison.comparison(request), comparison.left_out(request))
    assert "**Left out**" in text and f"- version {numbers[1]} (pbm-b8): its model cannot be read" in text

    claims.release(pending.claim)
    shutil.move(tmp_path / "aside", gone.uri)
    assert [item.number for item in reevaluate.plan(request)] == [numbers[0], numbers[2]], "back again, it is judged"
    assert not {version.number: version.tags for version in tracking.versions(config)}[numbers[0]].get(LEFT_OUT)


def test_a_registry_without_scores_is_an_error(
    config: TrackingConfig, judge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tmp_path / "inputs.yaml"
    names = {"experiment": config.experiment, "registered_model": config.registered_model}
    inputs.write_text(json.dumps({"evaluation": EVALUATION.model_dump(), "tracking": names}))
    assert reevaluate.main([str(inputs)]) == 2
    assert f"none of 0 versions of {config.registered_model!r} at sqlite:///" in capsys.readouterr().err
    tracking.register(config, judge.source, judge.source, judge.dataset)
    assert reevaluate.main([str(inputs)]) == 2
    assert "none of 1 versions" in capsys.readouterr().err


def test_the_champion_is_named_with_the_reason(config: TrackingConfig, judge: Any) -> None:
    request = Request(evaluation=EVALUATION, tracking=config)
    models = [judge.source, judge.model("pbm", 4), judge.model("pbm", 32)]
    for model, right, speedup in zip(models, (950, 950, 800), (1.0, 3.0, 9.0), strict=True):
        judge.register(config, EVALUATION, model, right=right, speedup=speedup)
    stranger = judge.register(config, EVALUATION, judge.model("swd", 8), right=950, speedup=5.0)
    keys = {model.key for model in models}
    said = reevaluate.conclude(request, keys)
    assert stranger not in said and sorted(said) == [2, 3]
    held, champion = reevaluate.standing(request, keys).splitlines()
    assert held.startswith("Held: pbm-b32 (version 3): accuracy -15.0 points against the champion")
    assert champion.startswith(
        "Champion: pbm-b4 (version 2): accuracy +0.0 points against the source on 1000 samples; speed-up 3.00x"
    )
    assert reevaluate.conclude(request, keys) == {}, "a second close decides nothing again"
    base, shown = (tracking.client_of(config)[0].get_model_version(config.registered_model, n).description for n in "13")
    assert base.startswith("source: 95.0 ± ") and base.endswith("All others are held against it.")
    assert shown.startswith("pbm-b32: 80.0 ± ") and "9.00x the source's speed" in shown and "\n\nHeld: accuracy -15.0" in shown


def test_who_was_held_against_an_earlier_champion_is_looked_at_again(config: TrackingConfig, judge: Any) -> None:
    """The slow one passes first, then the fast one; what was decided before the fast one came is decided against it."""
    request = Request(evaluation=EVALUATION, tracking=config)
    for stage, right, speedup in (("source", 950, 1.0), ("pbm", 700, 2.0), ("swd", 950, 3.0)):
        model = judge.source if stage == "source" else judge.model(stage, 8)
        judge.register(config, EVALUATION, model, right=right, speedup=speedup)
    reevaluate.conclude(request)
    against = {version.number: version.tags.get("bard.gate.against") for version in tracking.versions(config)}
    assert against == {1: None, 2: "3", 3: "1"} and reevaluate.conclude(request) == {}
    assert "no version has passed" not in reevaluate.standing(request)


def test_without_a_better_one_the_source_stays_champion(config: TrackingConfig, judge: Any) -> None:
    request = Request(evaluation=EVALUATION, tracking=config)
    judge.register(config, EVALUATION, judge.source, right=950, speedup=1.0)
    judge.register(config, EVALUATION, judge.model("pbm", 8), right=700, speedup=2.0)
    reevaluate.conclude(request)
    last = reevaluate.standing(request).splitlines()[-1]
    assert last == "Champion: source (version 1): no version has passed the gate yet"


def test_a_single_version_brings_its_baseline_and_the_champion(config: TrackingConfig, judge: Any) -> None:
    source = tracking.register(config, judge.source, judge.source, judge.dataset)
    others = [tracking.register(config, judge.model("pbm", size), judge.source, judge.dataset) for size in (4, 8, 16)]
    tracking.set_alias(config, "champion", others[0])
    pending = reevaluate.plan(Request(evaluation=EVALUATION, tracking=config, version=others[2]))
    assert [item.number for item in pending] == [source, others[0], others[2]]


def test_a_regression_is_told_and_fails_the_command(
    config: TrackingConfig, judge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tmp_path / "inputs.yaml"
    names = {"experiment": config.experiment, "registered_model": config.registered_model}
    inputs.write_text(json.dumps({"evaluation": EVALUATION.model_dump(), "tracking": names}))
    judge.register(config, EVALUATION, judge.source, right=950, speedup=1.0)
    judge.register(config, EVALUATION, judge.model("pbm", 8), right=900, speedup=2.0)
    judge.register(config, EVALUATION, judge.model("pbm", 8), right=890, speedup=2.0)  # within the margin
    judge.register(config, EVALUATION, judge.model("swd", 8), right=500, speedup=2.0)  # another name: no regression
    said = reevaluate.conclude(Request.read(inputs))
    assert {number: words.split(":")[0] for number, words in said.items()} == {2: "held", 3: "held", 4: "held"}
    assert reevaluate.conclude(Request.read(inputs)) == {}
    assert reevaluate.main([str(inputs)]) == 0
    assert "No regression." in capsys.readouterr().out
    judge.register(config, EVALUATION, judge.model("pbm", 8), right=800, speedup=2.0)
    assert reevaluate.main([str(inputs)]) == 1
    text = capsys.readouterr().out
    assert "- version 5 (pbm-b8): -9.0 points against version 3" in text
    assert "| 2 | pbm-b8 | 90.0 ± 1.0 % | 4.00 | 200 | 2.00x |" in text
    assert storage.home() == Path(storage.root_uri(STORAGE))
