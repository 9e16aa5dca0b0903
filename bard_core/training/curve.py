"""A run's learning curve: one JSON record a line, appended by rank 0, read by the launcher and the report."""

import json

from bard_core.store import storage

Record = dict[str, float]
CURVE = "curve.jsonl"
LASTING = ("step", "loss", "lr", "grad_norm")


class Curve:
    """Appends records to a JSON-lines file; a resumed run first drops what lies past its checkpoint."""

    def __init__(self, uri: str, active: bool) -> None:
        self.uri, self.active = uri, active

    def append(self, values: Record) -> None:
        if not self.active:
            return
        kept = [record for record in read_curve(self.uri) if record["step"] < values["step"]]
        text = "".join(json.dumps(record) + "\n" for record in [*kept, values])
        storage.write_bytes(self.uri, text.encode())


def read_curve(uri: str) -> list[Record]:
    """The records of a curve, in order of steps; empty when there is none yet."""
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]


def lasting(curve: bytes) -> bytes:
    """What of a curve is the training's own: the same again when it is trained again. Speeds, times and memory are left out."""
    records = [json.loads(line) for line in curve.decode().splitlines()]
    return "".join(
        json.dumps({name: r[name] for name in r if name in LASTING or name.startswith("val_")}) + "\n" for r in records
    ).encode()
