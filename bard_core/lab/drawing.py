"""The lab's pictures: grids of cells that each show a letter and a digit, and charts of labelled bars."""

import io
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

# Around mid-grey, which is zero after the processor's normalisation: what a patch holds is its ink, not its paper.
BACKGROUNDS = ((127, 127, 127), (140, 127, 120), (120, 127, 140), (120, 140, 120))
INK = (255, 255, 255)
BORDER = (100, 100, 100)
Cells = Sequence[tuple[str, int]]
Colour = tuple[int, int, int]


def grid(cells: Cells, columns: int, cell_px: int, background: Colour) -> bytes:
    """PNG bytes of the cells in reading order."""
    rows = -(-len(cells) // columns)
    image = Image.new("RGB", (columns * cell_px, rows * cell_px))
    for index, (letter, digit) in enumerate(cells):
        row, column = divmod(index, columns)
        image.paste(_tile(letter, digit, background, cell_px), (column * cell_px, row * cell_px))
    return _png(image)


def chart(bars: Cells, highest: int, rows: int, cell_px: int, background: Colour) -> bytes:
    """PNG bytes of a bar a column, its letter below it; a bar of ``highest`` reaches the top, one of 0 has no height."""
    image = Image.new("RGB", (len(bars) * cell_px, rows * cell_px), background)
    draw = ImageDraw.Draw(image)
    room = (rows - 1) * cell_px
    for column, (letter, value) in enumerate(bars):
        left, top = column * cell_px, round(room * (1 - value / highest))
        draw.rectangle((left + cell_px // 4, top, left + 3 * cell_px // 4, room), fill=INK if value else background)
        _write(draw, letter, (left + cell_px * 0.5, room + cell_px * 0.5), cell_px)
    return _png(image)


@cache
def _tile(letter: str, digit: int, background: Colour, cell_px: int) -> Image.Image:
    """One cell: the letter centred in its left half, the digit in its right half."""
    tile = Image.new("RGB", (cell_px, cell_px), background)
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, cell_px - 1, cell_px - 1), outline=BORDER)
    for text, x in ((letter, 0.30), (str(digit), 0.74)):
        _write(draw, text, (cell_px * x, cell_px * 0.5), cell_px)
    return tile


def _write(draw: ImageDraw.ImageDraw, text: str, at: tuple[float, float], cell_px: int) -> None:
    font = ImageFont.load_default(size=round(cell_px * 0.55))
    draw.text(at, text, fill=INK, font=font, anchor="mm", stroke_width=1, stroke_fill=INK)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
