"""Bad configuration files: every fault is told, at once, with its line and what is allowed, and quickly."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bard_core.cli import main
from bard_core.config.faults import ConfigFaultsError, read_config

LAB = (Path(__file__).resolve().parents[3] / "configs" / "lab.yaml").read_text(encoding="utf-8")
LAB = LAB.replace("clean_attention: causal", "clean_attention: block")  # some faults are of the paper's alone


def line_of(text: str, words: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), start=1) if words in line)


# What is changed in lab.yaml; what the message says of it. Each is refused at the line of the change.
BAD = [
    ("name: lab", "name: ../lab", "name: .*no name for a folder"),
    ("name: lab", "name: ''", "name: is ''; allowed: at least 1 character"),
    ("name: lab", "nmae: lab", "nmae: unknown key; did you mean 'name'"),
    ("name: lab", "name: [lab]", "name: is a list; allowed: a valid string"),
    ("name: lab", f"name: {'x' * 300}", "name: .* at most 100 characters"),
    ("name: lab", "name: 2024-13-45", "name: '2024-13-45' cannot be read: month must be"),
    ("name: lab", "name: &a [*a]", "name.0: stands inside itself"),
    ("    steps: 1000", f"    steps: 1{'0' * 5000}", "source.train.steps: '10+' cannot be read"),
    ("    rows: 2", "    rows: 6", "data.lab.rows: is 6; allowed: less than or equal to 5"),
    ("    rows: 2", "    rows: two", "data.lab.rows: is 'two'; allowed: a valid integer"),
    ("    rows: 2", "    rows: yes", "data.lab.rows: .*not yes or no"),
    ("    rows: 2", "    rows: 2.5", "data.lab.rows: .*valid integer"),
    ("    rows: 2", "    rows: 2\n    rows: 3", "data.lab.rows: stands here twice, first in line"),
    ("    rows: 2", "    rosw: 2", "data.lab.rosw: unknown key; did you mean 'rows'"),
    ("    digits: 5", "    digits: -1", "data.lab.digits: is -1; allowed: greater than or equal to 2"),
    ("    min_cells: 3", "    min_cells: 5", "data.lab: needs min_cells <= max_cells"),
    ("    alphabet: 4", "    alphabet: 3", "data.lab: rows x columns is 4, more cells"),
    ("  processor: lab", "  processor: lab\n  base: nothere", "data.base: .nothere. is no file and none of configs/data: "),
    ("  processor: lab", f"  processor: lab\n  base: {__file__}", "data.base: .*test_faults.py is not YAML: "),
    ("  processor: lab", "  processor: lba", "data.processor: 'lba' is neither lab, nor a folder"),
    ("  processor: lab", "  processor: /no/such/folder", "data.processor: '/no/such/folder' is neither"),
    ("  max_tokens: 512", "  max_tokens: 1", "data.max_tokens: is 1; allowed: greater than or equal to 16"),
    ("  max_tokens: 512", "  max_tokens: null", "data.max_tokens: is None; allowed: a valid integer"),
    ("  model: lab", "  model: ''", "source.model: '' is not a folder"),
    ("  model: lab", "  model: some/model", "source: source.train is required for model 'lab' and must be absent"),
    ("    layers: 3", "    layers: 0", "source.lab_model.layers: is 0"),
    ("    steps: 1000", "    steps: 0", "source.train: give either steps or num_epochs, got steps 0"),
    ("      lr: 3.0e-3", "      lr: fast", "source.train.optimizer.lr: is 'fast'; allowed: a valid number"),
    ("      lr: 3.0e-3", "      lr: .nan", "source.train.optimizer.lr: is nan; allowed: a finite number"),
    ("      lr: 3.0e-3", "      lr: -1", "source.train.optimizer.lr: is -1; allowed: greater than 0"),
    ("    precision: float32", "    precision: float64", "source.train.precision: is 'float64'; allowed: 'float32' or"),
    ("  noise: {min_t: 0.4, max_t: 1.0}", "  noise: {min_t: 0.9, max_t: 0.1}", "pbm.noise: min_t 0.9 must be below max_t"),
    ("  noise: {min_t: 0.4, max_t: 1.0}", "  noise: {name: salt}", "pbm.noise.name: is 'salt'; allowed: 'mask', 'uniform'"),
    ("    - block_size: 8", "    - block_size: 4", "pbm: pbm.stages must have growing block sizes"),
    ("    - block_size: 8", "    - block_size: 999", "pbm.stages.1.block_size: is 999"),
    ("      train: *short\n", "      train: *shrot\n", "not YAML: found undefined alias 'shrot'"),
    ("  students: [pbm-b32]", "  students: [pbm-b64]", "swd.students.0: names pbm-b64, which is none of pbm-b4, pbm-b8"),
    ("  students: [pbm-b32]", "  students: [pbm-b32, pbm-b32]", "swd.students.1: names pbm-b32 a second time"),
    ("  students: [pbm-b32]", "  students: 32", "swd.students: is 32; allowed: a list"),
    ("  students: [pbm-b32]", "  students: {a: pbm-b32}", "swd.students: is keys of its own; allowed: a list"),
    ("  students: [pbm-b32]", "  students: [b32]", "swd.students.0: 'b32' is neither a stage .* nor a folder"),
    ("  students: [pbm-b32]", "  students: [/no/such/folder]", "swd.students.0: '/no/such/folder' is a folder that is not there"),
    ("    - block_size: 8", "    - block_size: 8\n      parent: pbm-b16", "stages.1.parent: names pbm-b16, which is none of"),
    ("  model: lab", "  model: models:/bard", "source.model: 'models:/bard' is not a folder"),
    ("  students: [pbm-b32]", "  students: [pbm-b4]", "swd.students.0: names pbm-b4, which is swd.teacher"),
    ("  teacher: pbm-b4", "  teacher: pbm-b2", "swd.teacher: names pbm-b2"),
    ("  teacher: pbm-b4", "  teachr: pbm-b4", "swd.teachr: unknown key; did you mean 'teacher'"),
    ("  suite: lab", "  suite: lba", "evaluation.suite: no suite 'lba'; there are: .*lab"),
    ("  suite: lab", "  suite: ../lab", "evaluation.suite: no suite '../lab'"),
    ("  sweep_thresholds: [0.7, 0.98]", "  sweep_thresholds: [0.7, 1.5]", "evaluation.sweep_thresholds.1: is 1.5"),
    ("    confidence_threshold: 0.9", "    confidence_threshold: 1.5", "confidence_threshold: is 1.5; allowed: less"),
    ("    strategy: dynamic", "    strategy: self_speculative", "self_speculative needs pbm.clean_attention: causal"),
    ("    max_new_tokens: 64", "    denoising_steps: 8", "evaluation.decoding.denoising_steps: is 8, more than the smallest"),
    ("  num_workers: 2", "  num_workers: 0", "compute: compute.num_workers is a count or"),
    ("  num_workers: 2", "  num_workers: many", "compute.num_workers: is 'many'; allowed: a valid integer, or a list"),
    ("  num_workers: 2", "\tnum_workers: 2", "not YAML"),
    ("  processor: lab", "  processor: ''", "data.processor: is ''; allowed: at least 1 character"),
    ("  max_tokens: 512", "  suites: [nope]", "data.suites.0: no suite 'nope'; there are: full, gate"),
    ("  max_tokens: 512", "  max_tokens: 9999999999999999999999", "data.max_tokens: is 9{22}; allowed: less"),
    ("  max_tokens: 512", "  sources: [{name: x, schema_name: messages, uri: /none/*.x}]", "uri: '/none/.* no such folder"),
    ("  num_workers: 2", "  num_workers: 2\nstorage_config: {root_uri: 's4://b'}", "root_uri: 's4://b' is neither"),
    ("  num_workers: 2", "  num_workers: 2\nstorage_config: {root_uri: 's3://'}", "root_uri: 's3://' is neither"),
    ("  num_workers: 2", "  num_workers: 2\ntracking: {tracking_uri: 'htp://x'}", "is no MLflow server; allowed: http"),
    ("  num_workers: 2", "  num_workers: 2\ntracking: {experiment: ../x}", "experiment: '../x' is no name in MLflow"),
    ("  num_workers: 2", "  num_workers: 2\ntracking: {registered_model: 'a:b'}", "registered_model: 'a:b' is no name"),
]  # fmt: skip


@pytest.mark.parametrize(("was", "now", "words"), BAD, ids=[f"{now.strip()[:40]}" for _, now, _ in BAD])
def test_a_fault_is_told_with_its_line(tmp_path, capsys, was, now, words):
    path = tmp_path / "bad.yaml"
    assert was in LAB
    path.write_text(text := LAB.replace(was, now, 1), encoding="utf-8")
    assert main.main(["check", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    (told,) = [line for line in lines if re.search(words, line)] or lines
    found = re.match(rf"{re.escape(str(path))}:(\d+): ", told)
    assert found and re.search(words, told) and len(lines) <= 2, lines
    changed = line_of(text, now.splitlines()[-1])
    whole_section = (
        "needs min" in words
        or "rows x" in words
        or told.split(": ")[1] in ("compute", "pbm", "pbm.noise", "source", "source.train")
    )
    assert whole_section or int(found[1]) == changed, f"line {changed} was changed: {told}"


def test_two_sources_of_one_name_and_a_suite_without_its_questions_are_refused(tmp_path, capsys):
    source = "{name: x, schema_name: messages, uri: /tmp}"
    (tmp_path / "mine.yaml").write_text("description: d\nversion: 1\nbenchmarks: [{name: own, questions: none.jsonl}]\n")
    text = LAB.replace("  suite: lab", f"  suite: {tmp_path}/mine.yaml")
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text(text.replace("  max_tokens: 512", f"  sources: [{source}, {source}]"))
    assert main.main(["check", str(tmp_path / "a.yaml")]) == 2
    assert re.search(rf":{line_of(text, '  suite: ')}: evaluation.suite: .*none.jsonl", capsys.readouterr().err)
    assert main.main(["check", str(tmp_path / "b.yaml")]) == 2
    assert "two entries of data.sources have the name 'x'" in capsys.readouterr().err


def test_unknown_keys_of_a_base_are_told_where_it_is_named(tmp_path):
    """They once went round for ever, because they cannot be taken out of this file."""
    path = tmp_path / "bad.yaml"
    path.write_text(LAB.replace("  max_tokens: 512", "  base: ../lab"))
    with pytest.raises(ConfigFaultsError, match=r"bad\.yaml:5: data\.evaluation: unknown key"):
        read_config(path)


def test_all_faults_are_told_at_once(tmp_path):
    text = LAB.replace("name: lab", "name: a/b").replace("    rows: 2", "    rosw: 2\n    rows: 9")
    text = text.replace("  students: [pbm-b32]", "  kl_wieght: 1\n  top_k: 0\n  students: [pbm-b32]")
    text = text.replace("  suite: lab", "  suiet: lab").replace("  num_workers: 2", "  use_gpu: perhaps")
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigFaultsError) as refused:
        read_config(path)
    keys = [fault.key for fault in refused.value.faults]
    assert sorted(keys) == sorted(
        ["name", "data.lab.rosw", "data.lab.rows", "swd.kl_wieght", "swd.top_k", "evaluation.suiet", "compute.use_gpu"]
    )
    lines = [int(fault.place.rpartition(":")[2]) for fault in refused.value.faults]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "1: must be a mapping of sections: name, data"),
        (b"- a\n", "1: must be a mapping"),
        (b"name: [lab\n", "2: not YAML"),
        (b"name: lab\n---\nname: lab\n", "not YAML"),
        (b"name: \xff\n", "not UTF-8"),
        (b"name: lab\n\0\n", "2: not YAML: character #x0000"),
        (b"name: lab\n", "data: is missing and has no default"),
        (b"1: 2\n", "1: unknown key"),
    ],
)
def test_what_is_no_configuration_at_all(tmp_path, body, words):
    path = tmp_path / "bad.yaml"
    path.write_bytes(body)
    with pytest.raises(ConfigFaultsError, match=words):
        read_config(path)
    with pytest.raises(ConfigFaultsError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


def test_the_command_line_sets_single_keys_even_below_an_alias(tmp_path):
    path = tmp_path / "lab.yaml"
    path.write_text(LAB)
    overrides = [("pbm.stages.1.train.steps", "7"), ("swd.train.optimizer.lr", "1e-3"), ("evaluation.sweep_thresholds", "[0.5]")]
    config = read_config(path, overrides)
    assert [stage.train.steps for stage in config.pbm.stages] == [700, 7, 250, 450]
    assert (config.swd.train.optimizer.lr, config.evaluation.sweep_thresholds) == (1e-3, (0.5,))
    plain = read_config(path)
    assert config.model_copy(update={"pbm": plain.pbm, "swd": plain.swd, "evaluation": plain.evaluation}) == plain


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("swd.train.optimiser.lr", "1", "--swd.train.optimiser.lr 1: swd.train.optimiser: unknown key; did you mean 'optimizer'"),
        ("swd.train.optimizer.lr", "2", "--swd.train.optimizer.lr 2: swd.train.optimizer.lr: is 2"),
        ("pbm.stages.9.block_size", "2", "pbm.stages has entries 0 to 3"),
        ("name.first", "2", "name is 'lab', which has no keys"),
        ("swd.students", "[", "'\\[' is not YAML"),
    ],
)
def test_a_bad_override_is_told_as_the_option_it_was(tmp_path, key, value, words):
    path = tmp_path / "lab.yaml"
    path.write_text(LAB)
    with pytest.raises(ConfigFaultsError, match=words):
        read_config(path, [(key, value)])


def test_checked_files_say_the_same_when_written_out(tmp_path):
    for source in sorted((Path(__file__).resolve().parents[3] / "configs").glob("*b.yaml")):
        assert main.main(["check", str(source), "-o", str(tmp_path / source.name), "--swd.top_k=8"]) == 0
        written = read_config(tmp_path / source.name)
        assert written == read_config(source, [("swd.top_k", "8")])
        assert yaml.safe_load((tmp_path / source.name).read_text())["swd"]["top_k"] == 8


def test_faults_are_listed_for_machines(tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(LAB.replace("    rows: 2", "    rows: 9"))
    assert main.main(["check", str(path), "--json"]) == 2
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["place"], told["key"]) == (f"{path}:7", "data.lab.rows") and told["problem"].startswith("is 9; allowed: less")
    path.write_text(LAB)
    assert main.main(["check", str(path), "--json"]) == 0 and json.loads(capsys.readouterr().out) == []


def test_faults_are_told_without_torch(tmp_path):
    """Told within a second on a quiet machine, because nothing heavy is imported."""
    path = tmp_path / "bad.yaml"
    path.write_text(LAB.replace("  suite: lab", "  suite: none"))
    code = f"import sys; from bard_core.cli.main import main; code = main(['check', {str(path)!r}]); "
    code += "print(sorted({'torch', 'transformers', 'mlflow', 'flytekit'} & set(sys.modules))); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "[]\n"), done.stderr
