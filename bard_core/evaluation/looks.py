"""How the images look that a suite asks about, so that ``data.merge`` can keep them out of training."""

from pathlib import Path
from typing import Any

import numpy as np

from bard_core.config.sections.evaluation import EvaluationConfig
from bard_core.data.images import LOOK_BYTES, look_of
from bard_core.evaluation.benchmark import lmms, quiet
from bard_core.evaluation.suites import prepare_task, suite_digest, suite_of
from bard_core.store import artifacts, workshop
from bard_core.store.refs import LooksRef

LOOK_CODE = 1  # raise it when ``images.look_of`` sees otherwise


def looks_key(name: str) -> str:
    """What decides the looks: the suite, its tasks and their library; and how we look."""
    return artifacts.digest([LOOK_CODE, suite_digest(suite_of(EvaluationConfig(suite=name)), "")])


def see_suite(name: str, output_uri: str) -> LooksRef:
    """Look at every image of a suite's benchmarks, and commit the looks; those of our own tasks come from a dataset's own split.

    Raises:
        SuiteError: there is no such suite, or lmms-eval lacks a task of it.
    """
    _, scoring = lmms()
    with workshop.scratch("looks") as scratch:
        folder = scratch / "looks"
        folder.mkdir()
        for benchmark in suite_of(EvaluationConfig(suite=name)).benchmarks:
            task_folder = None if benchmark.own else prepare_task(benchmark, "", scratch / benchmark.name)
            looks = [] if benchmark.own else _looks(scoring.load_task(benchmark, task_folder))
            np.save(folder / f"{benchmark.name}.npy", np.frombuffer(b"".join(looks), np.uint8).reshape(-1, LOOK_BYTES))
        suite = Path(name).stem
        manifest = artifacts.commit_directory(folder, output_uri, kind="looks", metadata={"suite": suite})
    return LooksRef(uri=output_uri, manifest_sha256=manifest.digest, suite=suite)


def _looks(task: Any) -> list[bytes]:
    """Sorted, each once."""
    from PIL import Image

    found: set[bytes] = set()
    with quiet():
        for document in task.test_docs() if task.has_test_docs() else task.validation_docs():
            found.update(look_of(seen) for seen in task.doc_to_visual(document) or [] if isinstance(seen, Image.Image))
    return sorted(found - {b""})
