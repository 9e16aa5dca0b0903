"""What workers have to say reaches the one who started the run, once, and never stops a training."""

import logging
from pathlib import Path

import pytest

from bard_core.store import hiccups, storage
from bard_core.training.notices import FOLDER, Notices, take_notices


@pytest.fixture
def talker(tmp_path: Path):
    log = logging.getLogger("bard_core.some.room")
    handler = Notices(str(tmp_path / "run"))
    logging.getLogger("bard_core").addHandler(handler)
    yield log
    logging.getLogger("bard_core").removeHandler(handler)


def test_warnings_arrive_in_order_and_once(talker, tmp_path):
    talker.info("a step")
    talker.warning("skipping %s", "step-000004")
    talker.error("set aside")
    assert take_notices(str(tmp_path / "run")) == ["skipping step-000004", "set aside"]
    assert take_notices(str(tmp_path / "run")) == []
    assert take_notices(str(tmp_path / "never")) == []


def test_a_place_that_is_away_costs_a_notice_and_no_more(talker, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hiccups, "PAUSES_S", ())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FOLDER).write_text("a file where the folder should be")
    talker.error("lost")
    assert "Logging error" in capsys.readouterr().err
    monkeypatch.setattr(storage, "list_files", lambda uri: (_ for _ in ()).throw(storage.StorageError("away")))
    assert take_notices(str(tmp_path / "run")) == []
