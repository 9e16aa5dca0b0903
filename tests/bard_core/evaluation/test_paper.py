"""The paper's suite asks word for word what the release asks: ``release_prompts.json`` was computed with the release's own task
functions, prompt variants and wrapper from the same stand-in documents."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import lmms_eval.tasks
import pytest

from bard_core.evaluation.lmms_plugin import BardChat
from bard_core.evaluation.lmms_score import load_task, score
from bard_core.evaluation.suites import Benchmark, load_suite
from bard_core.store.refs import ModelRef

from .stand_ins import DOCUMENTS

PAPER = load_suite("paper").benchmarks
RELEASED = json.loads((Path(__file__).parent / "release_prompts.json").read_text(encoding="utf-8"))
FILES = {
    "mmmu_val": "mmmu",
    "mmmu_pro_standard": "mmmu_pro",
    "mmstar_oc": "mmstar",
}  # folder of a task's file, where it is not its name
SPLITS = {"mmmu_val": "validation", "mmstar": "val", "mmstar_oc": "val"}


def over_stand_ins(benchmark: Benchmark, folder: Path) -> Any:
    """lmms-eval's own task over our documents."""
    folder.mkdir()
    data = folder / "data.parquet"
    datasets.Dataset.from_list(DOCUMENTS[benchmark.task]).to_parquet(data)
    stock = Path(lmms_eval.tasks.__file__).parent / FILES.get(benchmark.task, benchmark.task) / f"{benchmark.task}.yaml"
    split = SPLITS.get(benchmark.task, "test")
    files = {"data_files": {split: str(data)}, "cache_dir": str(folder / "cache")}
    lines = {
        "include": str(stock),
        "task": benchmark.task,
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": files,
    }
    (folder / "task.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items()))
    return load_task(benchmark, folder)


def described(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def show(item: dict[str, Any]) -> str:
        return item["text"] if item["type"] == "text" else "image {}x{}".format(*item["image"].size)

    return [{"role": message["role"], "content": [show(item) for item in message["content"]]} for message in chat]


@pytest.fixture(scope="module")
def chat(make_model: Callable[..., ModelRef], tmp_path_factory: pytest.TempPathFactory) -> BardChat:
    uri = make_model(tmp_path_factory.mktemp("model") / "b4", 4).uri
    return BardChat(uri, system_prompt="You are a helpful assistant.")


def test_the_suite_is_the_releases() -> None:
    assert [benchmark.task for benchmark in PAPER] == list(RELEASED)
    assert [benchmark.max_new_tokens for benchmark in PAPER] == [asked["max_new_tokens"] for asked in RELEASED.values()]


@pytest.mark.parametrize("benchmark", PAPER, ids=lambda benchmark: benchmark.task)
def test_prompts_are_the_releases(benchmark: Benchmark, chat: BardChat, tmp_path: Path) -> None:
    task = over_stand_ins(benchmark, tmp_path / "task")
    chat.follow(benchmark)
    asked = [described(chat.chat_of(task.doc_to_messages(document))) for document in task.eval_docs]
    assert asked == RELEASED[benchmark.task]["prompts"]


def test_a_full_stop_after_the_answer_is_left_out_where_the_suite_says_so(
    chat: BardChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = next(benchmark for benchmark in PAPER if benchmark.task == "chartqa")
    monkeypatch.setattr(chat.processor, "batch_decode", lambda *_, **__: [" Blue. "])
    for named, right in ((benchmark, 1.0), (benchmark.model_copy(update={"strip_full_stop": False}), 0.0)):
        folder = tmp_path / str(right)
        folder.mkdir()
        found = score(chat, named, over_stand_ins(named, folder / "task"), folder / "out")
        assert (found.metrics["relaxed_overall"], found.records[0]["text"]) == (right, " Blue. ")
