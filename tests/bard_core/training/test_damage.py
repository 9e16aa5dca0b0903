"""A damaged run folder repairs itself: a flipped bit is found, what holds it set aside and told, and the work done again."""

from pathlib import Path

import pytest

from bard_core.config.sections.compute import CheckpointConfig, ComputeConfig
from bard_core.config.sections.storage import TrackingConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.store import artifacts
from bard_core.training.checkpoints.writer import latest_complete
from bard_core.training.curve import read_curve
from bard_core.training.spec import run_of
from bard_core.training.stage import prepare_base, run_stage
from tasks import launch

from .conftest import stage_specs


def flip(path):
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


@pytest.fixture
def here(monkeypatch):
    """Launch stages in this process, as on Ray but without its 15 seconds; counts how often one was trained."""
    trained = []

    def fit(spec, base, compute, claim):
        trained.append(spec.name)
        run_stage(spec, base, run_of(spec, compute.checkpoints))

    monkeypatch.setattr(launch, "_fit", fit)
    monkeypatch.setattr(launch.ray_local, "join", lambda: None)
    monkeypatch.setattr(launch.ray_local, "check", lambda compute: None)
    return trained


def launched(spec):
    return launch.train_on_ray(spec, ComputeConfig(checkpoints=CheckpointConfig()), TrackingConfig(), "")


def test_a_final_checkpoint(tiny_dataset, source_model, bard_home, here, caplog):
    spec = stage_specs(tiny_dataset, source_model, steps=6, checkpoint_every=3)["pbm"]
    whole = launched(spec)
    flip(Path(whole.uri) / "__0_0.distcp")
    again = launched(spec)
    assert again.key == whole.key and here == ["pbm-b4"] * 2
    assert Path(f"{whole.uri}.damaged").is_dir() and f"set aside as {whole.uri}.damaged" in caplog.text
    assert [record["step"] for record in read_curve(whole.curve_uri)] == [1, 2, 3, 4, 5, 6]
    assert launched(spec) == again and len(here) == 2, "repaired once"


def test_one_found_by_who_reads_it_is_made_again_by_the_same_command(tiny_dataset, source_model, bard_home, here):
    spec = stage_specs(tiny_dataset, source_model, steps=6, checkpoint_every=3)["pbm"]
    whole = launched(spec)
    flip(Path(whole.uri) / "__0_0.distcp")
    with pytest.raises(artifacts.DamagedError, match="run the same command again"):
        artifacts.fetch(whole)
    assert launched(spec).key == artifacts.verify(whole.uri).digest == whole.key


def test_the_base_model_of_a_run(tiny_dataset, bard_home, caplog):
    spec = stage_specs(tiny_dataset, None, steps=2)["source"]
    run = run_of(spec)
    base = prepare_base(spec, run)
    before = artifacts.verify(base).digest
    flip(Path(base) / "model.safetensors")
    assert prepare_base(spec, run) == base and artifacts.verify(base).digest == before
    assert f"set aside as {base}.damaged" in caplog.text and Path(f"{base}.damaged").is_dir()


def test_kept_answers_of_a_teacher(tiny_dataset, source_model, bard_home, caplog):
    spec = stage_specs(tiny_dataset, source_model, steps=6, checkpoint_every=3)["swd"]
    swd = SWDConfig(**{**spec.swd.model_dump(exclude_none=True), "targets": "offline"})
    spec = spec.model_copy(update={"swd": swd})
    run = run_of(spec)
    final = run_stage(spec, prepare_base(spec, run), run)
    whole = artifacts.verify(final).digest
    (shard,) = Path(f"{tiny_dataset.uri}-teacher").glob("*/shard-000000")
    answers = artifacts.verify(str(shard)).digest
    flip(shard / "topk.safetensors")
    artifacts.set_aside(final, artifacts.ArtifactError("for this test"))
    assert artifacts.verify(run_stage(spec, prepare_base(spec, run), run)).digest == whole
    assert artifacts.verify(str(shard)).digest == answers and f"set aside as {shard}.damaged" in caplog.text


def test_a_damaged_checkpoint_in_the_middle_costs_its_steps(tiny_dataset, source_model, bard_home):
    spec = stage_specs(tiny_dataset, source_model, steps=6, checkpoint_every=2)["pbm"]
    run = run_of(spec, CheckpointConfig(keep_last=3))
    run_stage(spec, prepare_base(spec, run), run)
    for step in (4, 6):
        flip(Path(run.checkpoint(step)) / "__0_0.distcp")
    assert latest_complete(run) == run.checkpoint(2)
    assert sorted(path.name for path in Path(run.uri).glob("*.damaged")) == ["step-000004.damaged", "step-000006.damaged"]
