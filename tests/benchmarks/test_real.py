"""Real weights: they load, take a mask token unharmed, learn to denoise, and self-speculation says what their AR mode says."""

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def real() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("real")


@pytest.fixture(scope="module")
def source(real: Any) -> Path:
    folder = Path(os.environ["BARD_REAL"])
    return real.read_weights(folder, folder / "source")


def test_the_mask_token_leaves_the_ar_mode_as_it_was(real: Any, source: Path) -> None:
    from bard_core.models import load

    model, tokenizer = real.load_source(source, torch.device("cpu"))
    asked = real.prompts(tokenizer, 2, seed=1)
    before = real.answers(load(source), asked, 12)
    assert real.answers(model, asked, 12) == before
    assert len(tokenizer.decode(before[0]).split()) > 3, "real weights answer in words"


def test_first_steps_of_the_conversion(real: Any, source: Path) -> None:
    body = real.run(source, steps=6, train_prompts=4, judged=2, tokens=12, batch=4, blocks=(4,))
    stage = body["stages"]["pbm-b4"]
    assert stage["losses"][-1] < stage["losses"][0]
    assert stage["self_speculative"]["agrees_with_own_ar"] == 1.0
