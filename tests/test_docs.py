"""Docs and README tell the truth: the site builds strictly, every command and snippet runs, the reference is the schema's."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bard_core.cli import main
from bard_core.config.reference import reference

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ENDLESS = {"chat", "serve"}  # tested on their own; here only their options are read


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(language):
    """(page, command) of every line of a block that starts ``bard``."""
    lines = [(path.name, line) for path in PAGES for block in blocks(path, language) for line in block.splitlines()]
    found = [(name, line.removeprefix(".venv/bin/")) for name, line in lines]
    return sorted({(name, line) for name, line in found if line.startswith("bard ")})


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_model):
    """A working folder as after the demo: its models, a picture, the configurations."""
    folder = tmp_path_factory.mktemp("docs")
    for name, size in (("source", 1), ("pbm-b4", 4), ("swd-b32", 32)):
        make_model(folder / "home" / "artifacts" / "models" / f"{name}-{size:016x}", size)
    Image.new("RGB", (64, 64)).save(folder / "grid.png")
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), commands("sh"), ids=lambda text: text[:60])
def test_every_command_runs(page, command, place, monkeypatch, capsys):
    monkeypatch.setenv("BARD_HOME", str(place / "home"))
    monkeypatch.chdir(place)
    arguments = shlex.split(command, comments=True)[1:]
    if arguments[0] in ENDLESS:
        arguments.append("--help")
    if arguments[0] == "export":
        shutil.rmtree(place / "my-model", ignore_errors=True)
    assert main.main(arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize(("page", "command"), commands("text"), ids=lambda text: text[:60])
def test_commands_that_train_are_spelt_as_the_verbs_have_it(page, command, capsys):
    """They run, in this order, in tests/bard_core/cli/test_stages.py; here their verbs and options are looked up."""
    arguments = [word for word in shlex.split(command)[1:] if not word.startswith("--evaluation.")]
    assert main.main([arguments[0], "--help"]) == 0
    known = capsys.readouterr().out
    assert all(word in known for word in arguments if word.startswith("-"))


@pytest.mark.slow
def test_every_snippet_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    snippets = [snippet for path in PAGES for snippet in blocks(path, "python")]
    assert len(snippets) >= 2
    for snippet in snippets:
        snippet = re.sub(r"^folder = .*$", "", snippet, flags=re.MULTILINE)
        exec(compile(snippet, "snippet", "exec"), {"folder": str(place / "home/artifacts/models" / f"pbm-b4-{4:016x}")})


def test_the_configuration_page_is_written_from_the_schema():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert text == reference(), "run: .venv/bin/bard schema --markdown > docs/configuration.md"


def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.parent.name or "index" for path in (tmp_path / "site").rglob("index.html")}
    assert {"ask", "stages", "serve", "export", "configuration", "faq"} <= pages
