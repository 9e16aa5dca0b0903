"""The report: every view shows the numbers of report.json, and the page needs nothing but itself."""

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bard_core.config.sections.evaluation import GateConfig
from bard_core.evaluation.compare import ComparisonError
from bard_core.report import build, samples, views
from bard_core.report.verdict import verdict
from bard_core.store import artifacts, provenance
from bard_core.store.refs import CheckpointRef, DatasetRef, EvalResult, ModelRef, OperatingPoint

from ..written import row as row_of
from ..written import write_dataset

SAMPLES = 8


def picture(shade: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, 0, 0)).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetRef:
    rows = [
        {
            "id": f"s{i}",
            "messages": json.dumps(
                [
                    {"role": "user", "content": [{"type": "image", "image": 0}, {"type": "text", "text": f"Is {i} < {i + 1}?"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": f"A={i}"}]},
                ]
            ),
            "images": [picture(i, "JPEG" if i == 0 else "PNG")] * (2 if i == 2 else 1),
            "answer": f"A={i}",
        }
        for i in range(SAMPLES)
    ]
    units = [[row_of("s", 4, [[2, 4]], split=1, **values) for values in rows[shard::2]] for shard in (0, 1)]
    return write_dataset(tmp_path / "data", units)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> dict[int, ModelRef]:
    folder = tmp_path_factory.mktemp("models")
    return {size: make_model(folder / f"m{size}", size) for size in (1, 4, 8, 32)}


def judged(
    folder: Path,
    stage: Any,
    block: int,
    right: int,
    speedup: float,
    judge: int = SAMPLES,
    wrong: str = "<b>`\n",
    model: ModelRef | None = None,
) -> EvalResult:
    """An evaluation whose first ``right`` answers are right."""
    records = [
        {
            "id": f"s{i}",
            "doc_id": i,
            "text": f"A={i}" if i < right else wrong,
            "reference": f"A={i}",
            "score": float(i < right),
            "forwards": i,
        }
        for i in range(judge)
    ]
    name = f"{stage}-{block}"
    staging = folder / f"{name}.staging"
    staging.mkdir()
    (staging / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    ratios = [speedup * (1 + 0.01 * i) for i in range(4)]
    (staging / "results.json").write_text(json.dumps({"metric": "score", "speed": {"ratios": ratios}}))
    manifest = artifacts.commit_directory(staging, str(folder / name), kind="evaluation")
    curve = folder / f"{name}.jsonl"
    curve.write_text("".join(json.dumps({"step": step, "loss": 3.0 / step, "lr": 0.1}) + "\n" for step in range(1, 6)))
    counts = {"rows": 2000, "train": 1890, "refused": {"empty answer": 100}, "left_out": {"duplicate": 10}}
    sources = {"docs": {"license": "CC-BY-4.0", "origin": "", **counts}}
    provenance.write_of_run(str(folder), {"stage": "pbm-b4", "samples": 1890, "sources": sources})
    here = model or ModelRef(uri=f"model-{name}", manifest_sha256=name, stage=stage, block_size=block, parent_sha256=None)
    model = here.model_copy(update={"stage": stage, "curve_uri": None if block == 1 else str(curve)})
    return EvalResult(
        uri=str(folder / name), manifest_sha256=manifest.digest, model=model, suite="lab", suite_digest="0",
        accuracy=right / judge, accuracy_stderr=0.0123, num_samples=judge, tokens_per_forward=2.345 * block,
        tokens_per_s=1234.5 * speedup, ar_tokens_per_s=1234.5, speedup=speedup,
    )  # fmt: skip


@pytest.fixture
def results(tmp_path: Path, models: dict[int, ModelRef]) -> list[EvalResult]:
    found = [
        judged(tmp_path, "source", 1, 7, 1.0, model=models[1]),
        judged(tmp_path, "pbm", 4, 7, 2.25, model=models[4].model_copy(update={"parent_sha256": models[1].key})),
        judged(tmp_path, "swd", 32, 4, 3.5, model=models[32].model_copy(update={"parent_sha256": "f" * 64})),
    ]
    return found


def context(margin: float = 0.5, **sections: Any) -> build.Context:
    decoding = {"decoding": {"max_new_tokens": 12}}
    configuration = {"name": "lab", "evaluation": decoding, **sections}
    return build.Context(configuration, GateConfig(accuracy_margin=margin), {"git_commit": "abc", "image": "none"})


def test_all_views_agree(results: list[EvalResult], dataset: DatasetRef, tmp_path: Path) -> None:
    ref = build.build(results, dataset, str(tmp_path / "report"), "Bard <lab>", context())
    folder = artifacts.fetch(ref)
    assert artifacts.verify(ref.uri).kind == "report"
    assert Path(ref.markdown) == folder / "report.md"
    later = replace(context(), made_by={"git_commit": "def", "image": "none"})
    assert build.build(results, dataset, ref.uri, "Bard <lab>", later) == ref, "what stands is kept"

    body = json.loads((folder / "report.json").read_text())
    for row, result in zip(body["rows"], results, strict=True):
        assert row["model"] == result.model.name
        for name in ("accuracy", "accuracy_stderr", "tokens_per_forward", "tokens_per_s", "speedup", "num_samples"):
            assert row[name] == getattr(result, name)
    assert [row["on_frontier"] for row in body["rows"]] == [False, True, True]
    assert body["verdict"]["speed"] == (
        "at equal accuracy: 2.25x (pbm-b4); within 0.5 points of it: 2.25x (pbm-b4); within 2.5 points of it: 2.25x (pbm-b4)"
    )
    assert (body["verdict"]["ship"], body["machine"]["cores"]) == ("pbm-b4", os.cpu_count())
    assert [(link["parent"], link["teacher"]) for link in body["lineage"]] == [("", ""), ("source", ""), ("f" * 12, "pbm-b4")]
    assert [(row["model"], row["wins"], row["losses"]) for row in body["against_source"]] == [("pbm-b4", 0, 0), ("swd-b32", 0, 3)]
    assert [record["loss"] for record in body["curves"]["pbm-b4"]] == [3.0, 1.5, 1.0, 0.75, 0.6]
    assert body["curves"]["source"] == []

    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    for row in body["rows"]:
        assert "| " + " | ".join(views.cells(row)) + " |" in markdown
        assert "".join(f"<td>{cell}</td>" for cell in views.cells(row)) in page
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3 + 2 + 1 + 2 + 2
    assert "| pbm-b4 | docs | CC-BY-4.0 | 2,000 | 1,890 | 100: empty answer | 10: duplicate |" in table
    assert "<td>CC-BY-4.0</td>" in page and "<td>100: empty answer</td>" in page


def test_thresholds_are_shown_and_the_verdict_takes_the_best(
    results: list[EvalResult], dataset: DatasetRef, tmp_path: Path
) -> None:
    """7 of 8 right is the source's accuracy; the student reaches it at a stricter threshold, faster than pbm-b4."""
    sweep = tuple(
        OperatingPoint(
            confidence_threshold=threshold, accuracy=right / SAMPLES, tokens_per_forward=tpf, tokens_per_s=7.0, speedup=speedup
        )
        for threshold, right, tpf, speedup in ((0.5, 4, 8.0, 3.5), (0.95, 7, 6.0, 2.75), (None, 7, 5.0, 2.5))
    )
    swept = [*results[:2], results[2].model_copy(update={"sweep": sweep})]
    folder = artifacts.fetch(build.build(swept, dataset, str(tmp_path / "report"), "Bard", context()))
    body = json.loads((folder / "report.json").read_text())
    assert "at equal accuracy: 2.75x (swd-b32, threshold 0.95)" in body["verdict"]["speed"]
    assert [(row["confidence_threshold"], row["speedup"]) for row in body["sweep"]] == [(0.5, 3.5), (0.95, 2.75), (None, 2.5)]
    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert "## Over thresholds" in markdown and "<h2>Over thresholds</h2>" in page and "Diamonds: self-speculation" in page
    for row in body["sweep"]:
        assert "| " + " | ".join(views.sweep_cells(row)) + " |" in markdown
        assert "".join(f"<td>{cell}</td>" for cell in views.sweep_cells(row)) in page


def test_the_page_holds_samples_and_pictures_and_runs_nothing(
    results: list[EvalResult], dataset: DatasetRef, tmp_path: Path
) -> None:
    folder = artifacts.fetch(build.build(results, dataset, str(tmp_path / "report"), "Bard <lab>", context()))
    body = json.loads((folder / "report.json").read_text())
    samples = body["samples"]
    assert [(sample["id"], sample["failure"]) for sample in samples] == [("s7", True), *((f"s{i}", False) for i in range(6))]
    assert samples[5] == {
        "id": "s4",
        "question": "Is 4 < 5?",
        "reference": "A=4",
        "failure": False,
        "answers": {"source": "A=4", "pbm-b4": "A=4", "swd-b32": "<b>`\n"},
        "right": {"source": True, "pbm-b4": True, "swd-b32": False},
    }
    watched = body["watched"]
    assert (watched["model"], watched["frames"][-1]["forward"]) == ("pbm-b4", watched["forwards"])
    assert watched["question"] == "Is 6 < 7?", "of the right ones the one of most forwards"
    assert [text for text, _, _ in watched["frames"][0]["cells"]].count(None) > 0 and "seconds" not in watched["frames"][0]
    assert all(text is not None for text, _, _ in watched["frames"][-1]["cells"])

    page = (folder / "report.html").read_text()
    assert "<h1>Bard &lt;lab&gt;</h1>" in page
    assert "Is 4 &lt; 5?" in page and "&lt;b&gt;" in page and "<b>`" not in page
    kinds = re.findall(r"src='data:(image/[\w+]+);base64,", page)
    assert sorted(kinds) == ["image/jpeg", *["image/png"] * 7, *["image/svg+xml"] * 2]  # eight of seven samples, two plots
    assert not re.findall(r"""(?:src|href|srcset)=["'](?!data:)""", page) and "@import" not in page and "url(" not in page
    assert all(re.search(r"""alt=['"][^'"]+""", image) for image in re.findall(r"<img[^>]*>", page)), "every picture is told"
    assert page.count("prefers-color-scheme") >= 3 and "width=device-width" in page
    assert "<script" not in page
    assert "- swd-b32: `<b>'` (wrong)" in (folder / "report.md").read_text()


def test_the_terminal_table_is_narrow_and_aligned(tmp_path: Path) -> None:
    table = build.rows([judged(tmp_path, "source", 1, 8, 1.0), judged(tmp_path, "pbm", 256, 8, 123.456)])
    lines = views.console_table(table).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100
    assert lines[0].split()[:3] == ["model", "block", "accuracy"]
    assert lines[2].split() == ["source", "AR", "100.0", "±", "1.2", "%", "2.35", "1234", "1.00x"]


def test_a_report_needs_one_source_and_the_same_samples(results: list[EvalResult], dataset: DatasetRef, tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="exactly one source"):
        build.build(results[1:], dataset, str(tmp_path / "report"), "t", context())
    with pytest.raises(ComparisonError, match="max_samples"):
        few = [results[0], judged(tmp_path, "swd", 8, 2, 2.0, judge=4)]
        build.build(few, dataset, str(tmp_path / "report"), "t", context())


def test_samples_come_from_those_judged(dataset: DatasetRef, tmp_path: Path) -> None:
    few = [judged(tmp_path, "source", 1, 2, 1.0, judge=3), judged(tmp_path, "pbm", 4, 1, 2.0, judge=3)]
    shown = samples.choose(few, dataset, "pbm-b4")
    assert [(record["id"], record["failure"]) for record in shown.records] == [("s1", True), ("s2", True), ("s0", False)]


def test_the_verdict_is_not_spoken_over_nothing(tmp_path: Path) -> None:
    def said(*right: int, margin: float = 0.5) -> dict[str, Any]:
        folder = tmp_path / f"{right}{margin}"
        folder.mkdir()
        stages = (("source", 1, 1.0), ("pbm", 4, 2.0), ("swd", 8, 4.0))
        found = [judged(folder, stage, block, n, speed) for (stage, block, speed), n in zip(stages, right, strict=False)]
        return verdict(found, GateConfig(accuracy_margin=margin))

    assert said(8, 8, 8)["say"] == "Ship swd-b8: 100.0 %, 4.0x as fast as the source (100.0 %)."
    assert said(8, 8, 0)["ship"] == "pbm-b4", "the student lost too much"
    none = said(8, 8, 8, margin=0.0)
    assert none["ship"] is None and none["say"].startswith("Ship none yet. Nearest is swd-b8: 100.0 %, 4.0x") and none["why"]
    assert said(0, 0, 0) == {
        "ship": None,
        "say": "No verdict: no model gives a right answer, so speeds at equal accuracy say nothing.",
        "why": "",
        "speed": "",
    }
    assert said(0, 3)["say"].startswith("No verdict: the source gives no right answer")
    assert said(5)["say"] == "Only the source was judged: 62.5 %."


def test_what_changed_since_the_last_report(results: list[EvalResult], dataset: DatasetRef, tmp_path: Path) -> None:
    first = build.build(results[:2], dataset, str(tmp_path / "lab-1"), "t", context())
    assert json.loads((artifacts.fetch(first) / "report.json").read_text())["since"] is None
    better = [results[0], results[1].model_copy(update={"accuracy": 1.0, "speedup": 3.0}), results[2]]
    folder = artifacts.fetch(build.build(better, dataset, str(tmp_path / "lab-2"), "t", context(pbm={"stages": [{"lr": 0.1}]})))
    since = json.loads((folder / "report.json").read_text())["since"]
    assert since["keys"] == [["pbm.stages.0.lr", None, 0.1]] and since["gone"] == []
    assert since["models"][1] == {
        "model": "pbm-b4", "new": False, "same_weights": True, "accuracy": 0.125, "speedup": 0.75
    }  # fmt: skip
    assert since["models"][2]["new"]
    page = (folder / "report.html").read_text()
    assert "<td>judged again</td><td>+12.5 points, +0.75x</td>" in page and "<td>pbm.stages.0.lr</td><td>unset</td>" in page


def test_what_checkpoints_cost_is_told_where_it_was_measured() -> None:
    measured = {"step": 700.0, "loss": 1.0, "train_s": 200.0, "checkpoint_blocked_s": 3.0, "startup_s": 4.25}
    cells = views.training_cells({"old": [{"step": 1.0, "loss": 2.0}], "none": [], "pbm-b4": [{"step": 1.0}, measured]})
    assert cells == [["pbm-b4", "700", "1.5% of 200 s", "4.2"]]


def test_trainings_alone_are_shown_side_by_side(bard_home: Path, tmp_path: Path) -> None:
    checkpoints = {}
    for label, last in (("mask", 1.0), ("mix", 2.0)):
        curve = tmp_path / f"{label}.jsonl"
        curve.write_text("".join(json.dumps({"step": step, "loss": last + 9 - step}) + "\n" for step in (1, 9)))
        checkpoints[label] = CheckpointRef(
            uri="c",
            manifest_sha256="0",
            stage="pbm",
            block_size=4,
            step=9,
            base_uri="b",
            parent_sha256=None,
            curve_uri=str(curve),
        )
    ref = build.build_curves(checkpoints, str(tmp_path / "report"), "Noises")
    folder = artifacts.fetch(ref)
    text = (folder / "report.md").read_text()
    assert "| mask | 9 | 9.000 | 1.000 |" in text and "| mix | 9 | 10.000 | 2.000 |" in text
    body = json.loads((folder / "report.json").read_text())
    assert body["curves"]["mix"][-1] == {"step": 9, "loss": 2.0}
    assert Image.open(folder / "curves.png").size[0] > 400
