"""The driver's eyes: a curve that cannot be read for a while loses no point, and what hangs behind a dead Ray is found."""

import json
from pathlib import Path
from typing import Any

import pytest

from bard_core.store import hiccups, storage
from tasks import follow
from tasks.follow import Follower, Watchdog


class Heard:
    def __init__(self) -> None:
        self.points: list[int] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.points.append(step)


def curve(folder: Path, steps: int) -> None:
    text = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, steps + 1))
    storage.write_bytes(str(folder / "curve.jsonl"), text.encode())


def test_every_point_arrives_once_though_reading_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Any, capsys: Any
) -> None:
    monkeypatch.setattr(hiccups, "PAUSES_S", ())
    heard = Heard()
    follower = Follower(str(tmp_path), "pbm-b4", 30, heard)  # type: ignore[arg-type]
    assert follower.look() == 0
    curve(tmp_path, 10)
    assert follower.look() == 10
    for damage in (b"\xff\xfe", b'{"step": 11, "lo', b'{"step": "x"'):
        (tmp_path / "curve.jsonl").write_bytes(damage)
        assert follower.look() == 10
    with monkeypatch.context() as patch:
        patch.setattr(follow, "read_curve", lambda uri: (_ for _ in ()).throw(storage.StorageError("away")))
        assert follower.look() == 10
        with pytest.raises(storage.StorageError):
            follower.close()
    curve(tmp_path, 30)
    storage.write_bytes(str(tmp_path / "notices" / "1"), b"topk.safetensors was changed; it was set aside")
    follower.close()
    assert "it was set aside" in capsys.readouterr().err, "a worker's warning"
    assert heard.points == list(range(1, 31))
    faults.survived("curve: unreadable while it is followed", "no point lost", times=5)


def test_the_bar_counts_training_and_not_rays_start_or_earlier_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(follow.time, "time", lambda: clock[0])
    curve(tmp_path, 10)
    follower = Follower(str(tmp_path), "pbm-b4", 30, Heard())  # type: ignore[arg-type]
    assert follower.begin() == 10 and follower._bar.initial == 10
    follower._bar._time, follower._bar.mininterval = lambda: clock[0], 0.0
    clock[0] += 90.0  # Ray starts
    records = "".join(json.dumps({"step": step, "loss": 1.0, "train_s": 0.5 * (step - 10)}) + "\n" for step in range(1, 13))
    storage.write_bytes(str(tmp_path / "curve.jsonl"), records.encode())
    assert follower.look() == 12
    assert follower._bar.start_t == pytest.approx(1089.5), "half a second of training was behind the first step"
    assert follower._bar.format_dict["rate"] == pytest.approx(2.0), "by which the time that is left is told"


def test_the_watchdog_bites_only_what_stands_still_and_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(follow.time, "monotonic", lambda: clock[0])
    dead: list[str | None] = [None]
    monkeypatch.setattr(follow, "local_ray_trouble", lambda: dead[0])
    monkeypatch.setattr(Watchdog, "_cluster_trouble", lambda self, now: None)
    dog = Watchdog(stall_s=30.0)
    assert dog.look(0) is None
    clock[0], dead[0] = 31.0, None
    assert dog.look(0) is None, "a long first step, and Ray lives"
    dead[0] = "Ray's raylet died"
    assert dog.look(5) is None, "it moves all the same"
    clock[0] = 50.0
    assert dog.look(5) is None
    clock[0] = 62.0
    assert dog.look(5) == "Ray's raylet died"
