"""What workers have to say reaches the one who started the run, once, and never stops a training."""

import logging
import os
import subprocess
import sys
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


@pytest.mark.parametrize("ci", ["", "true"])
def test_packages_underneath_are_heard_too(ci: str, tmp_path: Path) -> None:
    """In a process of its own, as a worker is; each once, and nothing below a warning. transformers' logger heeds ``CI``."""
    code = (
        "import logging, sys, warnings; import transformers; from bard_core.training.notices import leave_notices;"
        "leave_notices(sys.argv[1]);"
        "logging.getLogger('bard_core.data').warning('ours');"
        "logging.getLogger('transformers.modeling_utils').warning('theirs');"
        "logging.getLogger('torch.distributed').info('no warning');"
        "warnings.warn('of Python')"
    )
    env = os.environ | {"CI": ci}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True, capture_output=True, env=env)
    said = take_notices(str(tmp_path / "run"))
    assert said[:2] == ["ours", "theirs"] and len(said) == 3 and "UserWarning: of Python" in said[2]
