"""A home folder as the demo leaves it: random models under the demo's names, pictures to ask about."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bard_core.cli import main


@pytest.fixture(scope="session")
def demo_home(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Path:
    home = tmp_path_factory.mktemp("demo home ü")
    for name, block_size in (("source", 1), ("pbm-b4", 4), ("pbm-b8", 8)):
        make_model(home / "artifacts" / "models" / f"{name}-{block_size:016x}", block_size, seed=block_size)
    return home


@pytest.fixture
def demo(demo_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BARD_HOME", str(demo_home))
    return demo_home


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "grid.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(path)
    return path


class Bard:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.err = ""

    def __call__(self, *arguments: object, expect: int = 0) -> str:
        self.capsys.readouterr()
        code = main.main([str(argument) for argument in arguments])
        out, self.err = self.capsys.readouterr()
        assert code == expect, (code, out, self.err)
        return out


@pytest.fixture
def bard(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bard:
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        monkeypatch.setitem(os.environ, name, "200")
    return Bard(capsys)
