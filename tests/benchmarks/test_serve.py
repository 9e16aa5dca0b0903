"""The load test's own arithmetic; the server that it loads is tested in tests/bard_core/serving."""

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("serve")


def test_crossover_is_the_fewest_clients_at_which_autoregression_answers_more(module: Any) -> None:
    def level(clients: int, ar: float, blocks: float) -> dict[str, Any]:
        return {"clients": clients, "ar": {"tokens_per_s": ar}, "blocks": {"tokens_per_s": blocks}}

    levels = [level(1, 10, 27), level(2, 20, 40), level(4, 40, 39), level(8, 80, 41)]
    assert module.crossover(levels, "blocks") == 4 and module.crossover(levels[:2], "blocks") is None


def test_a_summary_counts_all_requests(module: Any) -> None:
    one = module.summary([2.0], 64, 2.0)
    assert one == {"requests": 1, "tokens_per_s": 32.0, "latency_p50_s": 2.0, "latency_p95_s": 2.0}
    many = module.summary([float(second) for second in range(1, 102)], 64, 1.0)
    assert (many["latency_p50_s"], many["latency_p95_s"]) == (51.0, 96.0)
