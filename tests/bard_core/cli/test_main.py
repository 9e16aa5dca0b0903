"""The command line as a whole: quick to ask for help, every verb with an example, options refused where they mean nothing."""

import re
import subprocess
import sys

import pytest

from bard_core.cli import configuration, main

VERBS = [command.name or command.callback.__name__ for command in main.app.registered_commands]


def test_help_imports_nothing_heavy():
    code = "import sys; from bard_core.cli.main import main; main(['--help']); "
    code += "heavy = {'torch', 'transformers', 'pydantic', 'yaml', 'numpy', 'PIL', 'mlflow', 'fastapi', 'ssl'}; "
    code += "sys.exit(str(heavy & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(bard, verb):
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", bard(verb, "--help")).split())
    assert f"Example: bard {verb}" in text


def test_dotted_options_are_taken_out_wherever_they_stand():
    rest, overrides = main.split_overrides(["plan", "--a.b", "1", "x.yaml", "--json", "--a.c.0=2 3", "--mfu", "0.3"])
    assert rest == ["plan", "x.yaml", "--json", "--mfu", "0.3"] and overrides == [("a.b", "1"), ("a.c.0", "2 3")]


def test_dotted_options_are_refused_where_nothing_reads_them(bard):
    bard("doctor", "--swd.top_k", "3", expect=2)
    assert "doctor reads no configuration" in bard.err and all(verb in bard.err for verb in configuration.READERS)
    assert set(VERBS) >= configuration.READERS
    bard("plan", "x.yaml", "--swd.top_k", expect=2)
    assert "a value must follow" in bard.err
    bard("plan", "x.yaml", "--swd", "3", expect=2)
    assert "No such option: --swd" in bard.err


def test_doctor_says_what_to_mend(bard, bard_home, monkeypatch):
    assert re.search(r"ok +python", bard("doctor")) and str(bard_home) in bard("doctor", "--json")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert re.search(r"FIX +mlflow.*\n.*unset MLFLOW_TRACKING_URI", bard("doctor", expect=1))
    bard_home.joinpath("staging").rmdir()
    bard_home.joinpath("staging").write_text("in the way")
    assert re.search(r"FIX +home.*\n.*set BARD_HOME", bard("doctor", expect=1))


def test_schema_and_reference_know_every_key(bard):
    import json

    from bard_core.config.file import PipelineConfig

    assert json.loads(bard("schema"))["properties"].keys() == PipelineConfig.model_fields.keys()
    page = bard("schema", "--markdown")
    assert "| `confidence_threshold` | number, > 0, ≤ 1 | `0.9` |" in page
    assert '| `strategy` | `dynamic`, `static`, `self_speculative` | `"dynamic"` |' in page
    assert page.count("\n## ") == len(set(re.findall(r"^## (.+)$", page, re.M)))


def test_the_shell_completes_verbs_and_options(bard, monkeypatch):
    for typed, found in (("bard e", ["evaluate", "export"]), ("bard generate --compa", ["--compare-ar"])):
        for name, value in (("COMP_WORDS", typed), ("COMP_CWORD", str(typed.count(" "))), ("_BARD_COMPLETE", "complete_bash")):
            monkeypatch.setenv(name, value)
        assert bard().split() == found
