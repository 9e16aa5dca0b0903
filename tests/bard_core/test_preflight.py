"""What cannot work is refused in seconds, in one line: key, value, what is there, what to do."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from bard_core import preflight
from bard_core.config.file import PipelineConfig
from bard_core.preflight import PreflightError

LAB = Path(__file__).parents[2] / "configs" / "lab.yaml"


def check(changes: dict[str, Any], here: bool = True) -> None:
    values = yaml.safe_load(LAB.read_text(encoding="utf-8"))
    for key, value in changes.items():
        place, *path = values, *key.split(".")
        for part in path[:-1]:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[path[-1]] = value
    config = PipelineConfig.model_validate(values)
    sections = (config.data, config.source, config.pbm, config.swd, config.compute, config.storage_config)
    preflight.check(*sections, on_this_machine=here)


Changes = dict[str, Any]
CPUS = os.cpu_count() or 1
FAULTS: dict[str, tuple[Changes, str, Changes]] = {  # what is asked for, what is said of it, and what that advises
    "use_gpu without a GPU": (
        {"compute.use_gpu": True, "compute.num_workers": 1},
        "use_gpu is true .* this machine has 0 GPUs: set use_gpu to false",
        {"compute.use_gpu": False},
    ),
    "more CPUs a worker than there are": (
        {"compute.cpus_per_worker": 4096},
        "num_workers x cpus_per_worker is 2 x 4096, but .* CPUs: set cpus_per_worker to at most",
        {"compute.cpus_per_worker": max(1, CPUS // 2)},
    ),
    "more workers than CPUs": (
        {"compute.cpus_per_worker": CPUS},
        f"num_workers x cpus_per_worker is 2 x {CPUS}, but .* {CPUS} CPUs: set num_workers to at most 1",
        {"compute.num_workers": 1},
    ),
    "batch smaller than workers x accumulation": (
        {"pbm.stages": [{"block_size": 4, "train": {"steps": 1, "batch_size": 8, "accumulation": 8}}], "swd.students": []},
        r"pbm.stages\[0\].train.batch_size is 8, fewer .* 2 x 8 = 16: raise it to 16",
        {"pbm.stages.0.train.batch_size": 16},
    ),
    "S3 artifacts with local checkpoints": (
        {"storage_config.root_uri": "S3"},
        "checkpoints.root_uri is empty, .*: set it to s3://.*/checkpoints",
        {"compute.checkpoints.root_uri": "S3/checkpoints"},
    ),
    "a place that cannot be written": (
        {"storage_config.root_uri": "/proc/bard"},
        "storage_config.root_uri is /proc/bard, where nothing",
        {"storage_config.root_uri": ""},
    ),
    "a missing processor": (
        {"data.processor": "/nowhere/processor"},
        "data.processor is /nowhere/processor, which cannot be loaded .*: name a folder .*, or lab",
        {"data.processor": "lab"},
    ),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_refused_in_seconds_in_one_line_whose_advice_helps(
    name: str, bard_home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, faults: Any
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    changes, words, advice = FAULTS[name]
    if "S3" in changes.values():
        root = request.getfixturevalue("s3_root")
        changes, advice = ({key: uri.replace("S3", root) for key, uri in of.items()} for of in (changes, advice))
    started = time.monotonic()
    with pytest.raises(PreflightError, match=words) as refusal:
        check(changes)
    assert "\n" not in str(refusal.value) and time.monotonic() - started < 60
    check({**changes, **advice})
    faults.survived(f"configuration: {name}", "refused in one line, whose advice helps", times=1)


def test_an_unwritable_home_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BARD_HOME", str(tmp_path / "file" / "home"))
    from bard_core.store.storage import StorageError

    with pytest.raises(StorageError, match=r"BARD_HOME .*file/home: cannot be used"):
        check({})
    (tmp_path / "file").unlink()
    check({})
    faults.survived("an unwritable home", "refused in one line", times=1)


def test_what_works_passes_and_another_machine_is_not_judged_by_this_one(bard_home: Path) -> None:
    check({"compute.num_workers": 1})
    check({"compute.use_gpu": True}, here=False)
    assert not list(bard_home.glob(".preflight-*"))
