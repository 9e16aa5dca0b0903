"""finding: one piece of the claims, and the page of them all. What a piece made is found by its key, not in a cache."""

import json

from flytekit import Deck

from bard_core.config.sections.storage import StorageConfig
from bard_core.findings.page import write_page
from bard_core.findings.pieces import distinct, recipes
from bard_core.findings.results import write_results
from bard_core.findings.spec import read_claims
from bard_core.findings.work import PieceError, run
from bard_core.store import artifacts, places, storage, workshop
from bard_core.store.refs import ReportRef
from tasks.settings import Report, stage_task


def levels_of(names: list[str]) -> list[list[str]]:
    """Keys of the pieces of these claims, in rows: a piece needs only pieces of the rows before its own."""
    depth: dict[str, int] = {}
    for key, piece in distinct(recipes(read_claims(names))).items():
        depth[key] = 1 + max((depth[need] for need in piece.needs), default=-1)
    return [[key for key, at in depth.items() if at == level] for level in range(max(depth.values(), default=-1) + 1)]


@stage_task("train", "evaluate")
def do_piece(piece: str, names: list[str], after: list[str | None], storage_config: StorageConfig) -> str:
    """Train or judge; ``after``: the pieces of the row before. Returns the piece's key."""
    pieces = distinct(recipes(read_claims(names)))
    run(pieces[piece], pieces, storage_config)
    return piece


@stage_task("report", "report")
def tell(names: list[str], after: list[str | None], storage_config: StorageConfig) -> Report:
    """The verdicts as report.md, with pictures, and a JSON file a claim in results/.

    Raises:
        PieceError: after it was written, where pieces are missing: says which.
    """
    claims = read_claims(names)
    with workshop.scratch("findings") as scratch:
        out = scratch / "findings"
        bodies = write_results(claims, out / "results", storage_config)
        page = write_page(out / "results", out, claims)
        page.rename(out / "report.md")
        uri = places.artifact_uri(storage_config, "report", "findings", "report", json.dumps(bodies, sort_keys=True))
        manifest = artifacts.standing(uri) or artifacts.commit_directory(out, uri, kind="report")
    Deck("Findings", storage.read_bytes(storage.join(uri, "report.md")).decode())
    missing = sorted({name for body in bodies for variant in body["variants"].values() for name in variant["missing"]})
    if missing:
        raise PieceError(f"not done: {', '.join(missing)}; their own logs say why. A new run goes on. What there is: {uri}")
    return ReportRef(uri=uri, manifest_sha256=manifest.digest, markdown=storage.join(uri, "report.md"))
