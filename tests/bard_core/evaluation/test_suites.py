"""Suites: every file is complete and says what it asks; digests change with what a score depends on."""

from pathlib import Path

import pytest
from lmms_eval.tasks import TaskManager

from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.evaluation.suites import SuiteError, available, benchmark_digest, load_suite, prepare_task, suite_digest, suite_of
from bard_core.store.refs import DatasetRef

from ..written import row, write_dataset

PAPER = ["mmmu_val", "mmmu_pro_standard", "mme", "realworldqa", "mmstar", "mmstar_oc", "ai2d", "chartqa"]


def test_the_suites_and_the_papers_settings() -> None:
    assert available() == ["full", "gate", "lab", "paper"]
    paper = load_suite("paper").benchmarks
    assert [benchmark.task for benchmark in paper] == PAPER
    assert {(b.min_pixels, b.max_pixels, b.interleave_visuals, b.strip_full_stop, b.whole_blocks, b.until) for b in paper} == {
        (65536, 4194304, False, True, True, ())
    }
    full = [benchmark.name for benchmark in load_suite("full").benchmarks]
    assert full[: len(PAPER)] == PAPER and {"docvqa_val", "infovqa_val", "mmbench_en_dev", "seedbench", "videomme"} <= set(full)
    assert [benchmark.own for benchmark in load_suite("lab").benchmarks] == [True]


@pytest.mark.slow
def test_lmms_eval_has_every_task_with_the_named_prompt_and_metric() -> None:
    import yaml

    from bard_core.evaluation import gen_kwargs
    from bard_core.evaluation.lmms_score import check_prompt

    class Loader(yaml.SafeLoader):
        """Task files call functions by tag; only their plain values matter here."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    manager = TaskManager(verbosity="ERROR")
    wanted = {benchmark.task: benchmark for name in ("full", "gate") for benchmark in load_suite(name).benchmarks}
    for name, benchmark in wanted.items():
        config: dict = {}
        path = Path(manager.task_index[name]["yaml_path"])
        while path is not None:
            body = yaml.load(path.read_text(), Loader)
            config = {**body, **config}
            path = path.parent / body["include"] if "include" in body else None
        check_prompt(benchmark, config.get("lmms_eval_specific_kwargs"))
        gen_kwargs.read(config.get("generation_kwargs") or {}, "ar")
        assert benchmark.metrics.keys() <= {metric["metric"] for metric in config["metric_list"]}, name


def test_a_suite_that_cannot_run_says_why(dataset: DatasetRef, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"no suite 'lap'; there are: full, gate, lab, paper"):
        load_suite("lap")
    nothing_held_out = write_dataset(tmp_path / "data", [[row("s", 4, [[2, 4]])]])
    with pytest.raises(SuiteError, match="holds out no sample"):
        prepare_task(load_suite("lab").benchmarks[0], nothing_held_out, tmp_path / "b")
    for text, words in (
        ("version: 1\nbenchmarks: []\n", "description"),
        ("description: d\nversion: 1\nbenchmarks: [{name: a, task: a, metrics: {x: 1}}]\n", "prompt"),
        ("description: d\nversion: 1\ninclude: [lab, lab]\n", "names must differ"),
        ("- lab\n", "not a suite"),
    ):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(SuiteError, match=words):
            load_suite(str(tmp_path / "s.yaml"))


def test_a_digest_covers_data_settings_and_the_cap_on_samples() -> None:
    lab, paper = load_suite("lab"), load_suite("paper")
    assert suite_digest(lab, "1") == suite_digest(lab, "1") != suite_digest(lab, "2")
    assert suite_digest(paper, "1") == suite_digest(paper, "2"), "public benchmarks do not change with the training data"
    capped = suite_of(EvaluationConfig(suite="lab", max_samples=4))
    assert suite_digest(capped, "1") != suite_digest(lab, "1")
    one = paper.benchmarks[0]
    for change in (
        {"prompt": "default"},
        {"max_pixels": 1024},
        {"max_new_tokens": 1},
        {"interleave_visuals": True},
        {"until": ("x",)},
    ):
        assert benchmark_digest(one.model_copy(update=change), "") != benchmark_digest(one, "")
