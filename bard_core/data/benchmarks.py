"""How the images of benchmarks look, as ``evaluation.looks`` saw them: what training must not show."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bard_core.store import artifacts
from bard_core.store.refs import LooksRef


def read_looks(refs: Sequence[LooksRef]) -> dict[str, Any]:
    """Benchmark -> looks [n, LOOK_BYTES] of its images."""
    return {
        f"{ref.suite}/{path.stem}": np.load(path, allow_pickle=False)
        for ref in refs
        for path in sorted(artifacts.fetch(ref).glob("*.npy"))
    }
