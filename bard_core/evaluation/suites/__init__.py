"""Suites: a folder each, of lmms-eval task templates. :func:`prepare_suite` points one at the data and names its digest."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bard_core import artifacts

FOLDER = Path(__file__).parent


class SuiteError(Exception):
    """A suite is unknown or lacks its data: says which there are."""


@dataclass(frozen=True)
class Suite:
    """An lmms-eval task ready to run. ``digest`` covers the task's files, its data and lmms-eval's version."""

    name: str
    task: str
    metric: str
    task_folder: Path
    digest: str


def available() -> list[str]:
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and any(path.glob("*.yaml.in")))


def prepare_suite(name: str, dataset: Path, dataset_digest: str, workshop: Path) -> Suite:
    """Copy the suite into ``workshop`` with its data files filled in; the data library's cache stays in there too.

    Raises:
        SuiteError: there is no such suite, or the dataset has no evaluation split.
    """
    if name not in available():
        raise SuiteError(f"no suite {name!r}; there are: {', '.join(available())}")
    shards = [str(path) for path in sorted((dataset / "eval").glob("*.parquet"))]
    if not shards:
        raise SuiteError(f"{dataset} has no eval/*.parquet: prepare it with an evaluation split")
    source = FOLDER / name
    (template,) = source.glob("*.yaml.in")
    folder = workshop / "tasks"
    folder.mkdir(parents=True)
    for helper in source.glob("*.py"):
        shutil.copyfile(helper, folder / helper.name)
    text = template.read_text(encoding="utf-8")  # a JSON list or string is YAML too
    text = text.replace("{data_files}", json.dumps(shards)).replace("{cache_dir}", json.dumps(str(workshop / "cache")))
    (folder / template.name.removesuffix(".in")).write_text(text, encoding="utf-8")
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(source.iterdir()) if path.is_file()}
    digest = artifacts.digest({"files": files, "dataset": dataset_digest, "lmms_eval": version("lmms_eval")})
    return Suite(name=name, task=template.name.removesuffix(".yaml.in"), metric="exact", task_folder=folder, digest=digest)
