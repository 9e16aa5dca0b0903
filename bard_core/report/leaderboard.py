"""leaderboard: every checkpoint and score that MLflow holds, on one sortable page, and the frontier of accuracy and speed.

The page is one file with its data, style and the few lines that sort it inside; it asks nobody for anything.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bard_core.config.sections.storage import TrackingConfig
from bard_core.evaluation.compare import on_frontier
from bard_core.report.pictures import frontier_png
from bard_core.tracking import LoggedScores, scored_models

FIRST = ("accuracy", "tokens_per_forward", "tokens_per_s", "speedup")
FACTS = ("block_size", "step")
HIDDEN = ("accuracy_stderr", "ar_tokens_per_s")  # shown with another number, or the same for all


def write(config: TrackingConfig, folder: Path) -> list[Path]:
    """``leaderboard.html`` and, where anything is scored, ``frontier.png`` in ``folder``."""
    page_path = write_page(config, folder)
    models = scored(config)
    if not models:
        return [page_path]
    picture = folder / "frontier.png"
    picture.write_bytes(frontier_png(points(models), sweep=[]))
    return [page_path, picture]


def write_page(config: TrackingConfig, folder: Path) -> Path:
    path = folder / "leaderboard.html"
    path.write_text(page(scored(config), f"Leaderboard: {config.experiment}"), encoding="utf-8")
    return path


def scored(config: TrackingConfig) -> list[LoggedScores]:
    """The checkpoints that have an accuracy."""
    return [model for model in scored_models(config) if "accuracy" in model.metrics]


def points(models: Sequence[LoggedScores]) -> list[dict[str, Any]]:
    """What the frontier picture needs of each model."""
    found: list[dict[str, Any]] = [
        {
            "model": model.name,
            "stage": model.params.get("stage", "pbm"),
            "speedup": model.metrics["speedup"],
            "accuracy": model.metrics["accuracy"],
            "accuracy_stderr": model.metrics.get("accuracy_stderr", 0.0),
        }
        for model in models
    ]
    best = on_frontier([(point["speedup"], point["accuracy"]) for point in found])
    return [point | {"on_frontier": undominated} for point, undominated in zip(found, best, strict=True)]


def columns(models: Sequence[LoggedScores]) -> list[str]:
    """Metrics in the order of the page: the headline, then every benchmark by name."""
    names = {name for model in models for name in model.metrics}
    rest = sorted(name for name in names if name not in (*FIRST, *HIDDEN) and not name.endswith("_stderr"))
    return [*(name for name in FIRST if name in names), *rest]


def page(models: Sequence[LoggedScores], title: str) -> str:
    """The page; a cell's exact value is in ``data-v``, by which it sorts, and in its tooltip."""
    shown = columns(models)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("model", *FACTS, *shown, "parent", "commit"))
    body = "".join(_row(model, shown) for model in models)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p>{len(models)} checkpoints. Click a column to sort by it.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><script>{SORT}</script></html>\n"
    )


def _row(model: LoggedScores, shown: Sequence[str]) -> str:
    cells = [_cell(model.name, model.name, f"{model.model_id} {model.params.get('manifest_sha256', '')}")]
    cells += [_cell(model.params.get(name, ""), model.params.get(name, "")) for name in FACTS]
    for name in shown:
        value, error = model.metrics.get(name), model.metrics.get(f"{name}_stderr")
        text = "" if value is None else f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")
        cells.append(_cell(text, "" if value is None else repr(value)))
    parent, commit = model.params.get("parent_sha256", "")[:12], model.params.get("git_commit", "")[:12]
    return "<tr>" + "".join([*cells, _cell(parent, parent), _cell(commit, commit)]) + "</tr>"


def _cell(text: str, value: str, hint: str = "") -> str:
    return f'<td data-v="{html.escape(value)}" title="{html.escape(hint or value)}">{html.escape(text)}</td>'


STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:2rem;color:#1d2733}table{border-collapse:collapse}
td,th{padding:.3rem .6rem;border-bottom:1px solid #d5dbe1;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}th{cursor:pointer;position:sticky;top:0;background:#fff}
th[aria-sort=ascending]::after{content:" \\25b2"}th[aria-sort=descending]::after{content:" \\25bc"}"""

# Numbers before texts, empty cells last; a second click turns the order.
SORT = """
const body=document.querySelector('tbody');
document.querySelectorAll('th').forEach((th,i)=>th.onclick=()=>{
 const up=th.getAttribute('aria-sort')==='descending';
 document.querySelectorAll('th').forEach(x=>x.removeAttribute('aria-sort'));
 th.setAttribute('aria-sort',up?'ascending':'descending');
 const key=r=>r.cells[i].dataset.v, num=v=>v!==''&&!isNaN(v);
 [...body.rows].sort((a,b)=>{
  const x=key(a),y=key(b);
  if(x===''||y==='')return (x==='')-(y==='');
  const d=num(x)&&num(y)?x-y:x.localeCompare(y);
  return up?d:-d;
 }).forEach(r=>body.append(r));
});"""
