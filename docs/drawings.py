"""Draw docs/layout.svg and docs/mask.svg from the layout and the mask rule that training uses.

python docs/drawings.py
"""

from html import escape
from pathlib import Path

import torch

from bard_core.diffusion.layout import CLEAN, NOISY, TokenTable, attention_mask, sample_layout

PROMPT, ANSWER, BLOCK = ["image", "image", "Read A."], ["A", "=", "3", ";", "end"], 2
MASKED = {0, 3, 4}  # of the noisy copy: what this step happens to hide
GREY, BLUE, ORANGE, GREEN, PAPER, INK = "#9aa0a6", "#4c8bf5", "#f29f3d", "#3da673", "#ffffff", "#333333"
SIDE, LEFT, TOP = 30, 92, 92


def table() -> TokenTable:
    """Of the row ``[prompt, answer | noisy answer]``."""
    start, length = len(PROMPT), len(PROMPT) + len(ANSWER)
    layout = sample_layout(length, [(start, length)], BLOCK)
    role = torch.tensor([CLEAN] * length + [NOISY] * len(layout.source_R))
    position = torch.cat([torch.arange(length), layout.source_R])
    return TokenTable(torch.zeros_like(role), position, torch.cat([layout.clean_block_N, layout.block_R]), role)


def labels(row: TokenTable) -> list[str]:
    tokens = [*PROMPT, *ANSWER]
    noisy = [tokens[p] if p < len(tokens) else "end" for p in row.position[len(tokens) :].tolist()]
    return tokens + ["mask" if number in MASKED else token for number, token in enumerate(noisy)]


def colours(row: TokenTable) -> list[str]:
    clean = [GREY if position < len(PROMPT) else BLUE for position in row.position.tolist()]
    return [ORANGE if role == NOISY else colour for role, colour in zip(row.role.tolist(), clean, strict=True)]


def layout_svg() -> str:
    """A row of training, token by token, with the blocks below."""
    row, wide = table(), 58
    parts = []
    for number, (label, colour) in enumerate(zip(labels(row), colours(row), strict=True)):
        x = 10 + wide * number
        parts += [_box(x, 40, wide - 4, 34, colour), _text(x + wide / 2 - 2, 62, label, PAPER)]
        parts.append(_text(x + wide / 2 - 2, 94, f"block {row.block[number]}", INK, 11))
    clean = len(PROMPT) + len(ANSWER)
    for start, end, words in (
        (0, len(PROMPT), "prompt, once"),
        (len(PROMPT), clean, "answer, clean"),
        (clean, len(row.role), "answer, noisy: masks are asked for, the last block is full"),
    ):
        parts.append(_text(10 + wide * (start + end) / 2 - 2, 26, words, INK))
    return _svg(16 + wide * len(row.role), 108, "One row of training: prompt, clean answer, noisy answer", parts)


def mask_svg() -> str:
    """Which query (a line) sees which key (a column), by the sub-rule that lets it."""
    row = table()
    seen, names, size = attention_mask(row, row), labels(row), len(row.role)
    parts = []
    for q in range(size):
        parts.append(_text(LEFT - 8, TOP + SIDE * q + 20, names[q], colours(row)[q], 13, "end"))
        x, y = LEFT + SIDE * q + 19, TOP - 8
        turned = f'transform="rotate(-90 {x} {y})"'
        parts.append(_text(x, y, names[q], colours(row)[q], 13, "start", turned))
        for k in range(size):
            clean_query, clean_key = row.role[q] == CLEAN, row.role[k] == CLEAN
            colour = BLUE if clean_query else GREEN if clean_key else ORANGE
            parts.append(_box(LEFT + SIDE * k, TOP + SIDE * q, SIDE - 3, SIDE - 3, colour if seen[q, k] else "#eef0f2"))
    words = ((BLUE, "clean sees clean: own block and before"), (GREEN, "noisy sees clean: before its block"))
    words += ((ORANGE, "noisy sees noisy: its own block"),)
    for number, (colour, text) in enumerate(words):
        y = TOP + SIDE * size + 14 + 24 * number
        parts += [_box(LEFT, y, 16, 16, colour), _text(LEFT + 24, y + 13, text, INK, 13, "start")]
    width = LEFT + SIDE * size + 10
    return _svg(width, TOP + SIDE * size + 92, "The attention mask of that row: lines look at columns", parts)


def _box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}"/>'


def _text(x: float, y: float, text: str, fill: str, size: int = 13, anchor: str = "middle", more: str = "") -> str:
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"'
    return f"<text {place} {more}>{escape(text)}</text>".replace(" >", ">")


def _svg(width: float, height: float, title: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img"'
    paper = f'<rect width="100%" height="100%" rx="6" fill="{PAPER}"/>'
    body = "\n".join(parts)
    return f'{head} font-family="sans-serif">\n<title>{escape(title)}</title>\n{paper}\n{body}\n</svg>\n'


DRAWINGS = {"layout.svg": layout_svg, "mask.svg": mask_svg}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")
