"""Docs and README tell the truth: the site builds strictly, every command and snippet runs, the reference is the schema's."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from bard_core.cli import main
from bard_core.config.bases import merged
from bard_core.config.file import PipelineConfig
from bard_core.config.reference import reference
from bard_core.evaluation.questions import read_questions
from bard_core.evaluation.suites import load_suite

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ENDLESS = {"chat", "serve"}  # tested on their own; here only their options are read


PAGE = {path.stem: path for path in PAGES}
RUN = ("bard", "make", "pyflyte run workflows/pipeline.py bard_pipeline --inputs-file configs/lab.yaml")


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(language, program="bard"):
    """(command, a page that has it) of the lines in blocks that start with a program."""
    found = {}
    for path in PAGES:
        for line in "".join(blocks(path, language)).splitlines():
            words = shlex.split(line.removeprefix(".venv/bin/"), comments=True)
            if words and words[0] == program:
                found.setdefault(shlex.join(words), path.name)
    return sorted(found.items())


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_model, place_dataset):
    """A working folder as after the demo: its models, a picture, the configurations."""
    folder = tmp_path_factory.mktemp("docs")
    for name, size in (("source", 1), ("pbm-b4", 4), ("swd-b32", 32)):
        make_model(folder / "home" / "artifacts" / "models" / f"{name}-{size:016x}", size)
    place_dataset(folder / "home")
    (folder / "mine").symlink_to(folder / "home" / "artifacts" / "models" / f"source-{1:016x}")
    Image.new("RGB", (64, 64)).save(folder / "grid.png")
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.setenv("BARD_HOME", str(place / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.chdir(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(("command", "page"), commands("sh"), ids=lambda text: text[:60])
def test_every_command_runs(command, page, there, capsys):
    arguments = [word.replace("~", str(there), 1) if word.startswith("~/") else word for word in shlex.split(command)[1:]]
    if arguments[0] in ENDLESS:
        arguments.append("--help")
    if arguments[0] == "export":
        shutil.rmtree(there / "my-model", ignore_errors=True)
    assert main.main(arguments) == 0, capsys.readouterr().err


def test_what_is_no_command_of_bard_is_a_target_of_make_with_options_that_it_takes(there, capsys):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command, page in commands("sh", "make"):
        words = shlex.split(command)
        assert words[1] in targets, f"{page}: {command}"
        given = dict(word.split("=", 1) for word in words[2:])
        assert set(given) <= {"CONFIG", "SET", "CLAIMS"}, f"{page}: {command}"
        config = given.get("CONFIG", "configs/lab.yaml")
        assert main.main(["check", config, *given.get("SET", "").split()]) == 0, f"{page}: {command}"
    lines = [line.removeprefix(".venv/bin/") for path in PAGES for block in blocks(path, "sh") for line in block.splitlines()]
    assert [line for line in lines if not line.startswith(RUN)] == []


@pytest.mark.parametrize(("command", "page"), commands("text"), ids=lambda text: text[:60])
def test_commands_that_train_are_spelt_as_the_verbs_have_it(command, page, capsys):
    """They run, in this order, in tests/bard_core/cli/test_stages.py; here their verbs and options are looked up."""
    arguments = [word for word in shlex.split(command)[1:] if not word.startswith("--evaluation.")]
    assert main.main([arguments[0], "--help"]) == 0
    known = capsys.readouterr().out
    assert all(word in known for word in arguments if word.startswith("-"))


@pytest.fixture(scope="module")
def port(place):
    """Of ``bard serve``, as docs/serve.md starts it."""
    import uvicorn

    from bard_core.serving.chat import Chat
    from bard_core.serving.server import create_app

    chat = Chat.open(place / "home" / "artifacts" / "models" / f"pbm-b4-{4:016x}")
    running = uvicorn.Server(uvicorn.Config(create_app(chat, "pbm-b4"), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield running.servers[0].sockets[0].getsockname()[1]
    running.should_exit = True
    thread.join(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("page", [path.stem for path in PAGES if blocks(path, "python") and path.stem != "mlflow"])
def test_every_snippet_runs(page, there, port, capsys):
    """docs/mlflow.md's runs in tests/bard_core/tracking/test_pages.py, where there are checkpoints."""
    folder = there / "home" / "artifacts" / "models" / f"pbm-b4-{4:016x}"
    if page == "export" and not (there / "my-model").is_dir():
        assert main.main(["export", str(folder), "-o", "my-model"]) == 0
    for snippet in blocks(PAGE[page], "python"):
        snippet = re.sub(r"^folder = .*$", "", snippet, flags=re.MULTILINE).replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        exec(compile(snippet, page, "exec"), {"folder": str(folder)})


@pytest.mark.parametrize("page", [path.stem for path in PAGES if path.stem != "benchmark" and blocks(path, "yaml")])
def test_every_piece_of_a_configuration_is_one(page, tiny_config):
    config = tiny_config()
    for block in blocks(PAGE[page], "yaml"):
        given = yaml.safe_load(block)
        if "source" in given:
            del config["source"]
        PipelineConfig.model_validate(merged(config, given))


def test_the_own_benchmark_of_the_page_can_be_asked(tmp_path):
    """docs/benchmark.md's two files, as they stand there; how they score is tested in evaluation/test_questions.py."""
    (suite,) = blocks(PAGE["benchmark"], "yaml")
    questions = blocks(PAGE["benchmark"], "text")[0]
    (tmp_path / "mine.yaml").write_text(suite)
    (tmp_path / "charts.jsonl").write_text(questions)
    (tmp_path / "charts").mkdir()
    for name in re.findall(r"charts/\d.png", questions):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    (benchmark,) = load_suite(str(tmp_path / "mine.yaml")).benchmarks
    assert len(read_questions(Path(benchmark.questions))) == questions.count("\n")


def script_of(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_readme_s_headline_tables_are_those_of_the_reports_that_are_kept():
    headline = script_of("headline")
    reports = json.loads(headline.KEPT.read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- headline: (\S+) -->", text)) == set(reports)
    assert headline.written(text, reports) == text, "run: python docs/headline.py"
    reports["lab"]["rows"][-1]["speedup"] += 1.0
    assert headline.written(text, reports) != text


def test_the_page_of_findings_names_every_claim():
    from bard_core.findings.spec import read_claims

    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert [claim.name for claim in read_claims() if claim.question not in page] == [], "run: bard findings --page"


@pytest.mark.parametrize("name", ["layout.svg", "mask.svg"])
def test_the_pictures_are_drawn_from_the_code_that_trains(name):
    drawings = script_of("drawings")
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == drawings.DRAWINGS[name](), "run: python docs/drawings.py"


def test_the_configuration_page_is_written_from_the_schema():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert text == reference(), "run: .venv/bin/bard schema --markdown > docs/configuration.md"


def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.parent.name or "index" for path in (tmp_path / "site").rglob("index.html")}
    assert {path.stem for path in PAGES if path.stem not in ("README", "index")} <= pages
