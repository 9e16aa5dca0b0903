"""What a model was trained on, in short: carried in its folder from stage to stage, for reports and model cards.

One entry a stage: ``stage``, ``samples``, and ``sources``: name -> ``license``, ``origin``, ``rows``, ``train``, ``refused``,
``left_out``, as the data card has them.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bard_core.store import artifacts, storage
from bard_core.store.refs import Ref

FILE = "training_data.json"
KEPT = ("license", "origin", "rows", "train", "refused", "left_out")
HEAD = ("stages", "source", "licence", "rows", "trained on", "refused", "left out")
Entry = dict[str, Any]


def entry_of(stage: str, dataset: Ref) -> Entry:
    """The entry of a stage that is trained on a dataset.

    Raises:
        ArtifactError: the dataset is torn or has no card.
    """
    card = json.loads((artifacts.fetch(dataset, part="card.json") / "card.json").read_text(encoding="utf-8"))
    sources = {name: {key: source[key] for key in KEPT} for name, source in card["sources"].items()}
    return {"stage": stage, "samples": card["samples"]["train"], "sources": sources}


def write_of_run(run_uri: str, entry: Entry) -> None:
    """Keep a stage's entry beside its curve, until there is a model's folder."""
    storage.write_bytes(storage.join(run_uri, FILE), json.dumps(entry).encode())


def of_run(curve_uri: str) -> Entry:
    """What ``write_of_run`` kept beside a run's curve."""
    entry: Entry = json.loads(storage.read_bytes(storage.join(curve_uri.rpartition("/")[0], FILE)))
    return entry


def read(folder: Path) -> list[Entry]:
    """The entries of a model's (local) folder, first stage first; none where nobody wrote any."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def add(folder: Path, entry: Entry) -> None:
    """Write ``entry`` behind those of a model's folder."""
    entries = [*read(folder), entry]
    (folder / FILE).write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def lines(entries: Iterable[Entry]) -> list[tuple[str, ...]]:
    """A line a source in the order of ``HEAD``; stages that share their data share its lines."""
    stages: dict[str, list[str]] = {}
    for entry in entries:
        named = stages.setdefault(json.dumps(entry["sources"], sort_keys=True), [])
        named += [entry["stage"]] * (entry["stage"] not in named)
    return [
        (
            ", ".join(named),
            name,
            source["license"],
            f"{source['rows']:,}",
            f"{source['train']:,}",
            _counts(source["refused"]),
            _counts(source["left_out"]),
        )
        for body, named in stages.items()
        for name, source in json.loads(body).items()
    ]


def _counts(reasons: dict[str, int]) -> str:
    return "; ".join(f"{count:,}: {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])) or "none"
