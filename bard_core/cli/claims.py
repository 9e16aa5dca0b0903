"""findings: try the claims of configs/findings, several seeds each, and write what came of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
RESULTS, DOCS = ROOT / "benchmarks" / "results" / "findings", ROOT / "docs"


def add_to(app: typer.Typer) -> None:
    app.command()(findings)


def findings(
    names: Annotated[list[str] | None, typer.Argument(help="claims, as files of configs/findings [default: all]")] = None,
    processes: Annotated[int, typer.Option(min=1, help="pieces at once; they share the cores")] = 2,
    seed: Annotated[list[int] | None, typer.Option(help="of a claim's seeds, only this; may be said again")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="of the variants, only this; may be said again")] = None,
    dry: Annotated[bool, typer.Option("--plan", help="say what would run, and stop")] = False,
    page_only: Annotated[bool, typer.Option("--page", help="run nothing: write the page of the results that there are")] = False,
    results: Annotated[Path, typer.Option(help="where the results go")] = RESULTS,
    docs: Annotated[Path, typer.Option(help="where findings.md goes")] = DOCS,
) -> None:
    """Try claims about the recipe, with seeds and error bars: results, and a page with the verdicts.

    Stopped and started again, it goes on; what is done is done once, whichever claims share it.

    Example: bard findings progressive elastic --processes 2
    """
    from bard_core.findings import growth
    from bard_core.findings.page import write_page
    from bard_core.findings.pieces import distinct, recipes
    from bard_core.findings.pool import run_all
    from bard_core.findings.results import write_results
    from bard_core.findings.spec import read_claims

    claims = read_claims(names or ())
    pieces = distinct(recipes(claims, seed or (), variant or ()))
    if dry:
        print("\n".join(_planned(pieces)))
        return
    failed = {} if page_only else run_all(pieces, processes)
    for body in [] if page_only else write_results(claims, results):
        print(f"{body['number']} {body['claim']}: {body['verdict']}")
    print(write_page(results, docs, read_claims(), growth.read(results.parent)))
    for name, why in failed.items():
        print(f"FAILED {name}: {why}")
    if failed:
        raise typer.Exit(1)


def _planned(pieces: dict[str, Any]) -> list[str]:
    from bard_core.config.sections.storage import StorageConfig
    from bard_core.findings.work import found

    done = {key for key, piece in pieces.items() if found(piece, StorageConfig()) is not None}
    lines = [f"{'done' if key in done else 'to do':6}{piece.cost:>7}  {piece.name}" for key, piece in pieces.items()]
    left = sum(piece.cost for key, piece in pieces.items() if key not in done)
    return [*lines, f"{len(pieces) - len(done)} of {len(pieces)} pieces to do, {left} steps of training or their like"]
