"""The lab's harder questions: seven tasks about a grid or a chart, with answers from one token to about 200.

    read    Read K B.      K=7 B=2              the digits of some letters
    count   Count 3.       2                    how many cells show a digit
    yesno   Is K 7?        yes                  half of the questions are true
    sort    Sort K B M.    B M K                letters by their digits, equal ones by the alphabet
    add     Add K B M.     7+2+4=13             a sum and its parts
    chart   Value of K?    4                    the height of a bar
    list    List 7.        row 1 column 1: ...  the first cells in reading order, at least two thirds of them

A letter is a grid's cell or a chart's bar; the digit is what the cell shows, or how high the bar is.
"""

import random
import string
from typing import Any

from bard_core.config.sections.data import LabTask, LabWorldConfig
from bard_core.lab import drawing
from bard_core.lab.drawing import Cells

OF_CHARTS: tuple[LabTask, ...] = ("chart", "sort", "add")  # what can be asked about a chart
Turns = list[tuple[str, str]]


def conversation(world: LabWorldConfig, index: int, rng: random.Random) -> tuple[bytes, Turns]:
    """PNG bytes of one picture, and from one to ``turns_per_image`` questions about it with their answers.

    The last question's task goes around with ``index``, so that all are asked as often; an earlier one is drawn, and never
    "list", which would leave nothing to read.
    """
    last = world.tasks[index % len(world.tasks)]
    letters = rng.sample(string.ascii_uppercase[: world.alphabet], world.columns * (1 if last == "chart" else world.rows))
    cells = [(letter, rng.randrange(world.digits)) for letter in letters]
    background = drawing.BACKGROUNDS[rng.randrange(len(drawing.BACKGROUNDS))]
    if last == "chart":
        png = drawing.chart(cells, world.digits - 1, world.rows, world.cell_px, background)
    else:
        png = drawing.grid(cells, world.columns, world.cell_px, background)
    known = [task for task in world.tasks if task != "list" and ((task in OF_CHARTS) if last == "chart" else task != "chart")]
    before = [rng.choice(known) for _ in range(rng.randrange(world.turns_per_image))] if known else []
    return png, [ask(task, cells, world, rng) for task in (*before, last)]


def ask(task: LabTask, cells: Cells, world: LabWorldConfig, rng: random.Random) -> tuple[str, str]:
    """A question of a task about these cells (or bars), and its answer."""
    digits = dict(cells)
    most = min(world.max_cells, len(cells))
    some = rng.sample(sorted(digits), rng.randint(min(world.min_cells, most), most))
    named, one = " ".join(some), some[0]
    if task == "read":
        return f"Read {named}.", " ".join(f"{letter}={digits[letter]}" for letter in some)
    if task == "count":
        wanted = digits[one] if rng.random() < 0.7 else rng.randrange(world.digits)
        return f"Count {wanted}.", str(sum(digit == wanted for _, digit in cells))
    if task == "yesno":
        other = rng.choice([digit for digit in range(world.digits) if digit != digits[one]])
        return (f"Is {one} {digits[one]}?", "yes") if rng.random() < 0.5 else (f"Is {one} {other}?", "no")
    if task == "sort":
        return f"Sort {named}.", " ".join(sorted(some, key=lambda letter: (digits[letter], letter)))
    if task == "add":
        return f"Add {named}.", f"{'+'.join(str(digits[letter]) for letter in some)}={sum(digits[letter] for letter in some)}"
    if task == "chart":
        return f"Value of {one}?", str(digits[one])
    places = [(*divmod(index, world.columns), letter, digit) for index, (letter, digit) in enumerate(cells)]
    first = places[: rng.randint(-(-2 * len(places) // 3), len(places))]
    said = [f"row {row + 1} column {column + 1}: {letter}={digit}" for row, column, letter, digit in first]
    return f"List {len(first)}.", "; ".join(said)


def row(name: str, png: bytes, turns: Turns) -> dict[str, Any]:
    """A conversation as FineVision stores it."""
    texts = [{"user": user, "assistant": assistant} for user, assistant in turns]
    return {"images": [{"bytes": png, "path": f"{name}.png"}], "texts": texts}
