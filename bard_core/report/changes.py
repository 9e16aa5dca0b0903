"""What is different since the last report of the same name: keys of the configuration, code, and every model's numbers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bard_core.store import artifacts, storage

HISTORY = 20  # reports remembered


def history_uri(report_uri: str) -> str:
    """Beside the reports of a name: where they are, oldest first."""
    return report_uri.rpartition("-")[0] + ".history.json"


def remember(report_uri: str) -> None:
    """Note that this is now the last report of its name."""
    known = [uri for uri in _known(report_uri) if uri != report_uri]
    body = json.dumps([*known, report_uri][-HISTORY:], indent=2)
    storage.write_bytes(history_uri(report_uri), body.encode())


def last_before(report_uri: str) -> dict[str, Any] | None:
    """report.json of the newest other report of the name that still stands and can be read."""
    for uri in reversed(_known(report_uri)):
        try:
            if uri != report_uri:
                body: dict[str, Any] = json.loads((artifacts.fetch(uri) / "report.json").read_text(encoding="utf-8"))
                return body
        except (artifacts.ArtifactError, OSError, ValueError):
            continue
    return None


def _known(report_uri: str) -> list[str]:
    try:
        return [str(uri) for uri in json.loads(storage.read_bytes(history_uri(report_uri)))]
    except (storage.StorageError, OSError, ValueError):
        return []


def since(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any] | None:
    """``keys``: [dotted key, value before, value now]; ``models``: differences of accuracy (a share) and speed-up.

    None: there was no report before this.
    """
    if before is None or "configuration" not in before:
        return None
    old, new = (_flat(body["configuration"]) for body in (before, now))
    keys = [[key, old.get(key), new.get(key)] for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    rows = {row["model"]: row for row in before["rows"]}
    models = [
        {
            "model": row["model"],
            "new": row["model"] not in rows,
            "same_weights": row["model"] in rows and rows[row["model"]]["model_sha256"] == row["model_sha256"],
            "accuracy": row["accuracy"] - rows[row["model"]]["accuracy"] if row["model"] in rows else None,
            "speedup": row["speedup"] - rows[row["model"]]["speedup"] if row["model"] in rows else None,
        }
        for row in now["rows"]
    ]
    gone = sorted(rows.keys() - {row["model"] for row in now["rows"]})
    commits = [before["made_by"]["git_commit"], now["made_by"]["git_commit"]]
    return {"keys": keys, "models": models, "gone": gone, "commits": commits}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        parts = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: item for part in parts for key, item in part.items()}
    if isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(item, Mapping) for item in value):
        parts = [_flat(item, f"{prefix}.{number}") for number, item in enumerate(value)]
        return {key: item for part in parts for key, item in part.items()}
    return {prefix: value}
