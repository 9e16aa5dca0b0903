"""report.html, a view of report.json made to be read: the verdict first, then its evidence. One file; it runs no script."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from bard_core.report import views
from bard_core.store import provenance

STYLE = Path(__file__).with_name("style.css")
NO_BREAK = "\u00a0"
STEP_S, LAST_S = 0.35, 2.5  # how long a frame of the animated answer stands; the last one


def page(body: dict[str, Any], plots: dict[str, tuple[bytes, bytes]], images: Sequence[Sequence[bytes]]) -> str:
    """The page.

    Args:
        plots: by name, an SVG for light surroundings and one for dark.
        images: of each sample, in order.
    """
    title, found = html.escape(body["title"]), body["verdict"]
    mood = "go" if found["ship"] else "no"
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}: {html.escape(found['say'])}</title><style>{STYLE.read_text(encoding='utf-8')}</style>",
        f"<h1>{title}</h1><p class='verdict {mood}'>{html.escape(found['say'].replace(' %', NO_BREAK + '%'))}</p>",
        _paragraph(f"Speed-up over autoregressive decoding, {found['speed']}." if found["speed"] else ""),
        _paragraph(f"{'For' if found['ship'] else 'Against'} it: {found['why']}." if found["why"] else "", "note"),
        f"<div class='card'>{_picture('frontier', _frontier_words(body), plots)}</div>",
        _paragraph(
            views.SELF_SPECULATION_NOTE if any(row["confidence_threshold"] is None for row in body["sweep"]) else "", "note"
        ),
        _table(views.COLUMNS, [views.cells(row) for row in body["rows"]], _shipped(body)),
        _paragraph(views.NOTE, "note"),
        _section("An answer comes about", _watch(body["watched"]) if body["watched"] else ""),
        _section("Lineage", _lineage(body)),
        _section("Since the last run", _changes(body["since"])),
        _section("Samples", _samples(body["samples"], images)),
        _section("Against the source, sample by sample", _table(views.AGAINST, map(views.against_cells, body["against_source"]))),
        _section("Over thresholds", _thresholds(body["sweep"])),
        _section("Training", _training(body, plots)),
        _section("Data", _table(provenance.HEAD, provenance.lines(body["data"]), "words")),
        _section("How it was made", _making(body)),
    ]
    return "".join(parts) + "</html>\n"


def _paragraph(text: str, kind: str = "") -> str:
    return f"<p class='{kind}'>{html.escape(text)}</p>" if text else ""


def _section(title: str, content: str) -> str:
    return f"<h2>{html.escape(title)}</h2>{content}" if content else ""


def _table(head: Sequence[str], body: Iterable[Sequence[str]], mark: str = "") -> str:
    """``mark``: the first cell of the row to stand out, or ``words`` for a table of texts."""
    rows = [*body]
    if not rows:
        return ""
    top = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in head)
    rest = "".join(
        f"<tr{' class=ship' if line[0] == mark else ''}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>"
        for line in rows
    )
    kind = f" class='words{' wide' if len(head) > 3 else ''}'" if mark == "words" else ""
    return f"<div class='scroll'><table{kind}><thead><tr>{top}</tr></thead><tbody>{rest}</tbody></table></div>"


def _shipped(body: dict[str, Any]) -> str:
    return body["verdict"]["ship"] or ""


def _picture(name: str, words: str, plots: dict[str, tuple[bytes, bytes]]) -> str:
    light, dark = (base64.b64encode(plot).decode() for plot in plots[name])
    kind = "data:image/svg+xml;base64,"
    return (
        f"<picture><source media='(prefers-color-scheme: dark)' srcset='{kind}{dark}'>"
        f"<img class='plot' alt='{html.escape(words, quote=True)}' src='{kind}{light}'></picture>"
    )


def _frontier_words(body: dict[str, Any]) -> str:
    models = "; ".join(f"{row['model']} {100 * row['accuracy']:.1f} % at {row['speedup']:.2f}x" for row in body["rows"])
    return f"Accuracy over speed-up: {models}"


def _watch(watched: dict[str, Any]) -> str:
    """The block-diffusion answer and the autoregressive one beside it, at the same number of forwards, over and over."""
    frames, source = watched["frames"], watched["source"]
    last = max(watched["forwards"], source["forwards"], frames[-1]["forward"])
    blocks: dict[int, str] = {}
    for frame in frames:
        blocks[frame["forward"]] = "".join(map(_cell, frame["cells"]))
    tokens = {forward: html.escape("".join(source["pieces"][:forward])) for forward in range(source["forwards"] + 1)}
    tokens[source["forwards"]] = html.escape("".join(source["pieces"]))
    pace = f"in all {watched['forwards']} against {source['forwards']}"
    return (
        f"<p>{html.escape(watched['question'])}</p><div class='watch'>"
        f"<div class='card'><b>{html.escape(watched['model'])}</b>{_stage(blocks, last)}</div>"
        f"<div class='card'><b>source, autoregressive</b>{_stage(tokens, last)}</div></div>"
        f"<p class='note'>A right answer that took most forwards. Both at the same number of forwards; {pace}. Green was filled "
        "with a probability of 0.9 or more, amber with 0.6 or more, red with less; underlined has just come; ░ is masked.</p>"
    )


def _cell(cell: Sequence[Any]) -> str:
    text, sure, new = cell
    if text is None:
        return "<span class='dim'>░</span>"
    rank = "" if sure is None else "sure" if sure >= 0.9 else "less" if sure >= 0.6 else "least"
    return f"<span class='{rank}{' new' if new else ''}'>{html.escape(text)}</span>"


def _stage(shown: dict[int, str], last: int) -> str:
    """Frames, each visible from its forward until the next one's, in a loop of CSS alone."""
    whole = last * STEP_S + LAST_S
    forwards = sorted(shown)
    out = []
    rules = []
    for number, forward in enumerate(forwards):
        start = 100 * forward * STEP_S / whole
        end = 100 * forwards[number + 1] * STEP_S / whole if number + 1 < len(forwards) else 100.0
        name = f"f{len(forwards)}-{last}-{number}"
        hidden = "" if start == 0 else "0%{visibility:hidden}"
        rules.append(f"@keyframes {name}{{{hidden}{start:.3f}%{{visibility:visible}}{end:.3f}%{{visibility:hidden}}}}")
        out.append(f"<div style='animation-name:{name}'>{shown[forward]}</div>")
    return f"<style>{''.join(rules)}</style><div class='stage' style='--t:{whole:.2f}s'>{''.join(out)}</div>"


def _lineage(body: dict[str, Any]) -> str:
    rows = {row["model"]: row for row in body["rows"]}
    items = []
    for link in body["lineage"]:
        row = rows[link["model"]]
        origin = f"from {link['parent']}" if link["parent"] else "starts here"
        teacher = f", taught by {link['teacher']}" if link["teacher"] else ""
        ship = " class='ship'" if link["model"] == body["verdict"]["ship"] else ""
        items.append(
            f"<li{ship}><b>{html.escape(link['model'])}</b><small>{html.escape(origin + teacher)}</small>"
            f"{100 * row['accuracy']:.1f} %, {row['speedup']:.2f}x<small>{html.escape(row['model_sha256'][:12])}</small></li>"
        )
    return f"<ol class='chain'>{''.join(items)}</ol>"


def _changes(since: dict[str, Any] | None) -> str:
    if since is None:
        return _paragraph("This is the first report of this name here.", "note")
    keys = [[key, *("unset" if value is None else str(value) for value in values)] for key, *values in since["keys"]]
    models = []
    for row in since["models"]:
        if row["new"]:
            models.append([row["model"], "new", ""])
        elif not row["same_weights"] or row["accuracy"] or row["speedup"]:
            what = "judged again" if row["same_weights"] else "trained anew"
            models.append([row["model"], what, f"{100 * row['accuracy']:+.1f} points, {row['speedup']:+.2f}x"])
    models += [[name, "gone", ""] for name in since["gone"]]
    before, now = since["commits"]
    code = "" if before == now else f"Code: {before[:12]} before, {now[:12]} now."
    tables = _table(("key", "before", "now"), keys, "words") + _table(("model", "what", "difference"), models, "words")
    return _paragraph(code) + (tables or _paragraph("Nothing changed that decides a number.", "note"))


def _samples(samples: Sequence[dict[str, Any]], images: Sequence[Sequence[bytes]]) -> str:
    shown = "".join(_sample(sample, pictures) for sample, pictures in zip(samples, images, strict=True))
    return f"<div class='samples'>{shown}</div>" if shown else ""


def _sample(sample: dict[str, Any], images: Sequence[bytes]) -> str:
    words = html.escape(f"the picture asked about: {sample['question']}", quote=True)
    pictures = "".join(f"<img alt='{words}' src='{_inline(image)}'>" for image in images)
    tag = "<span class='tag bad'>failure</span>" if sample["failure"] else "<span class='tag'>right</span>"
    answers = "".join(
        f"<li{'' if good else ' class=wrong'}><span>{'✓' if good else '✗'} {html.escape(name)}</span>"
        f"<code>{html.escape(sample['answers'][name]) or '(nothing)'}</code></li>"
        for name, good in sample["right"].items()
    )
    return (
        f"<article class='sample'>{pictures}<div>{tag} <b>{html.escape(sample['question'])}</b></div>"
        f"<div class='dim'>reference <code>{html.escape(sample['reference'])}</code></div><ul>{answers}</ul></article>"
    )


def _thresholds(sweep: Sequence[dict[str, Any]]) -> str:
    table = _table(views.SWEEP, map(views.sweep_cells, sweep))
    return table + _paragraph(views.SWEEP_NOTE, "note") if table else ""


def _training(body: dict[str, Any], plots: dict[str, tuple[bytes, bytes]]) -> str:
    names = [name for name, curve in body["curves"].items() if curve]
    if not names:
        return ""
    words = f"Training loss over steps of {', '.join(names)}"
    picture = f"<div class='card'>{_picture('curves', words, plots)}</div>"
    return picture + _table(views.TRAINING, views.training_cells(body["curves"]))


def _making(body: dict[str, Any]) -> str:
    machine = {name: value for name, value in body["machine"].items() if value is not None}
    facts = [[name.replace("_", " "), str(value)] for name, value in {**body["made_by"], **machine}.items()]
    text = yaml.safe_dump(body["configuration"], sort_keys=False)
    commands = "".join(f"{line}\n" for line in body["reproduce"])
    return (
        f"{_table(('what', 'which'), facts, 'words')}"
        "<p>To make it again, with <code>config.yaml</code>, which lies beside this page and below:</p>"
        f"<pre>{html.escape(commands)}</pre><details><summary>Configuration</summary><pre>{html.escape(text)}</pre></details>"
    )


def _inline(image: bytes) -> str:
    """A data URI; the type comes from the bytes."""
    with Image.open(io.BytesIO(image)) as opened:
        kind = Image.MIME[str(opened.format)]
    return f"data:{kind};base64," + base64.b64encode(image).decode()
