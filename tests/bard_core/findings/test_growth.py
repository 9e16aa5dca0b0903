"""Claim 8 on the page: the benchmarks' own results, a row a curve, the server's clients where they were measured."""

import json
from pathlib import Path
from typing import Any

from bard_core.findings import growth
from bard_core.findings.page import write_page

MACHINE = {"gpu": None, "cpu": "Abacus", "cores": 2, "torch": "2"}


def curve(of: str, over: str, **more: Any) -> dict[str, Any]:
    return {"of": of, "over": over, "sizes": [1, 2, 4], "seconds": [0.1, 0.2, 0.4], "exponent": 1.0, "last": 1.25, **more}


def test_the_page_tells_the_exponents_and_the_clients(tmp_path: Path) -> None:
    curves = [curve("training step", "prefix"), curve("decoding forward", "prefix", last=0.5)]
    shape = {"layers": 2, "hidden": 8}
    measured = {"machine": MACHINE, "base": {"prefix": 512}, "shape": shape, "curves": curves}
    (tmp_path / "growth-abacus.json").write_text(json.dumps(measured))
    assert [body["serving"] for body in growth.read(tmp_path)] == [None]
    levels = [{"clients": 3, "ar": {"tokens_per_s": 7.0}, "blocks": {"tokens_per_s": 21.0}}]
    (tmp_path / "serve-abacus.json").write_text(json.dumps({"new_tokens": 64, "levels": levels}))
    page = write_page(tmp_path / "none", tmp_path, (), growth.read(tmp_path)).read_text()
    assert (
        "| 8 | [How do a training step" in page and "(#8-growth) | measured | exponents: training step 1.25 in the prefix" in page
    )
    assert "| training step | prefix | 1 / 2 / 4 | 100 / 200 / 400 | 1.00 | 1.25 |" in page
    assert "| clients | ar | blocks |" in page and "| 3 | 7 | 21 |" in page
    assert "Abacus, 2 cores" in page
    assert (tmp_path / "findings" / "growth.png").read_bytes()[1:4] == b"PNG"


def test_without_measurements_the_page_has_no_such_row(tmp_path: Path) -> None:
    assert "growth" not in write_page(tmp_path / "none", tmp_path, (), growth.read(tmp_path)).read_text()
