"""Two pipelines may consolidate one checkpoint at once: one writes the model, the other waits and finds it."""

import threading
from pathlib import Path

import pytest

from bard_core import tracking
from bard_core.config.sections.storage import StorageConfig, TrackingConfig
from bard_core.store import artifacts, provenance
from bard_core.store.refs import CheckpointRef
from bard_core.training.checkpoints import delivery
from tasks import consolidate as task


def test_the_same_model_is_asked_for_twice_at_once(bard_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, curve = tmp_path / "step-000002", tmp_path / "curve.jsonl"
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(b"0")
    curve.write_text('{"step": 2}\n')
    provenance.write_of_run(str(tmp_path), {"stage": "pbm-b4", "samples": 1, "sources": {}})
    manifest = artifacts.commit_directory(folder, str(folder), kind="checkpoint", step=2, config_digest="c" * 64)
    checkpoint = CheckpointRef(
        uri=str(folder), manifest_sha256=manifest.digest, stage="pbm", block_size=4, step=2, base_uri=str(folder),
        parent_sha256=None, curve_uri=str(curve),
    )  # fmt: skip
    refs: list[artifacts.ModelRef] = []

    def write() -> None:
        inputs = {"storage_config": StorageConfig(), "tracking": TrackingConfig(), "parent_run": ""}
        refs.append(task.consolidate.task_function(checkpoint=checkpoint, clean_attention="block", **inputs))

    other, written = threading.Thread(target=write), []

    def write_model(source: Path, output: Path, *rest: object, **more: object) -> None:
        written.append(output)
        output.mkdir(parents=True)
        (output / "first").write_bytes(b"1")
        if not other.ident:
            other.start()
            other.join(1.0)
            assert other.is_alive(), "it waits"
        (output / "second").write_bytes(b"2")

    monkeypatch.setattr(delivery, "consolidate", write_model)
    write()
    other.join(60.0)
    assert len(refs) == 2 and refs[0].key == refs[1].key and len(written) == 1
    found = artifacts.verify(refs[0].uri)
    assert [entry.path for entry in found.files] == ["first", "second", "training_curve.jsonl", "training_data.json"]
    assert not list((bard_home / "staging").iterdir())
    (model,) = tracking.scored_models(TrackingConfig())
    assert model.params["config_digest"] == "c" * 64, "MLflow knows what it was trained with"
