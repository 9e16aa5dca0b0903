"""The lab world: images a model must read, questions that name cells, answers that list and then derive.

An image is a grid of cells, each showing one letter and one digit. A question names a few letters; the answer first
lists their digits (any order of decoding works) and then derives a total, a maximum and a minimum (which need the list):
long enough, and partly parallel, partly sequential, so that decoding several tokens at once is possible but not free. With
``tasks``, questions are those of ``lab.tasks`` instead, all but a share for ``practice``.

The world is written as raw Parquet shards in the exact public schemas of FineVision, LLaVA-OneVision-1.5 and
MMFineReason, so that the converters of real data read it. The same seed gives the same bytes (for one version of
Pillow and pyarrow). Training, evaluation and validation draw from separate seed streams and share no image.
"""

import hashlib
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from bard_core.config.sections.data import LabWorldConfig
from bard_core.config.sources import RawSchema, RawSource
from bard_core.lab import drawing, tasks

Split = Literal["train", "eval"]
Stream = Literal["train", "eval", "validation"]  # where images are drawn from; they share none
SHARES: dict[RawSchema, float] = {"finevision": 0.4, "llava_onevision": 0.4, "mmfinereason": 0.2}
ROWS_PER_SHARD = 1000
_MAX_REDRAWS = 1000  # an evaluation image that also occurs in training is drawn again, at most this often

READ_QUESTION = "Read {letters}."
LIST_QUESTION = "List all cells."
REASON_QUESTION = "Reason about {letters}."
THINK_ANSWER = "<think>{listing}</think>{derived}"


def question(schema: RawSchema, letters: list[str]) -> str:
    """The question about ``letters`` in the phrasing of one schema (without image placeholder); "list" names none."""
    phrase = {"finevision": READ_QUESTION, "llava_onevision": LIST_QUESTION, "mmfinereason": REASON_QUESTION}[schema]
    return phrase.format(letters=" ".join(letters))


def answer(schema: RawSchema, letters: list[str], digits: list[int]) -> str:
    """The exact answer, e.g. ``K=7 B=2 M=4; sum=13; max=7; min=2``; its width depends on the number of letters only."""
    listing = " ".join(f"{letter}={digit}" for letter, digit in zip(letters, digits, strict=True))
    total, most, least = f"sum={sum(digits):02d}", f"max={max(digits)}", f"min={min(digits)}"
    if schema == "mmfinereason":
        return THINK_ANSWER.format(listing=listing, derived=f"{total}; {most}")
    return f"{listing}; {total}; {most}; {least}"


def _draw(world: LabWorldConfig, rng: random.Random) -> tuple[bytes, dict[str, int]]:
    """PNG bytes of a random grid, or with the task "chart" of a chart for every third, and the digit of each of its letters."""
    as_chart = "chart" in world.tasks and rng.randrange(3) == 0
    letters = rng.sample(string.ascii_uppercase[: world.alphabet], world.columns * (1 if as_chart else world.rows))
    digits = {letter: rng.randrange(world.digits) for letter in letters}
    background = drawing.BACKGROUNDS[rng.randrange(len(drawing.BACKGROUNDS))]
    if as_chart:
        return drawing.chart([*digits.items()], world.digits - 1, world.rows, world.cell_px, background), digits
    return drawing.grid([*digits.items()], world.columns, world.cell_px, background), digits


def _turns(
    world: LabWorldConfig, schema: RawSchema, stream: Stream, digits: dict[str, int], rng: random.Random
) -> list[tuple[str, str]]:
    """Question-answer pairs about one image: many in FineVision, one elsewhere."""
    most = {"finevision": world.turns_per_image}
    turns = []
    for _ in range(most.get(schema, 1) if stream == "train" else 1):
        # LLaVA-OneVision asks for the whole grid in alphabetical order, the others for a few cells in any order.
        most_cells = min(world.max_cells, len(digits))
        some = rng.sample(sorted(digits), rng.randint(min(world.min_cells, most_cells), most_cells))
        letters = sorted(digits) if schema == "llava_onevision" else some
        turns.append((question(schema, letters), answer(schema, letters, [digits[letter] for letter in letters])))
    return turns


def _raw_row(schema: RawSchema, name: str, png: bytes, turns: list[tuple[str, str]]) -> dict[str, Any]:
    """One row as the public data set of that schema stores it."""
    image = {"bytes": png, "path": f"{name}.png"}
    if schema == "finevision":
        return {"images": [image], "texts": [{"user": user, "assistant": assistant} for user, assistant in turns]}
    if schema == "llava_onevision":
        speech = [item for user, assistant in turns for item in (("human", user), ("gpt", assistant))]
        conversations = [{"from": speaker, "value": value} for speaker, value in speech]
        conversations[0]["value"] = "<image>\n" + conversations[0]["value"]
        return {"id": name, "image": image, "conversations": conversations}
    ((user, response),) = turns
    return {
        "question": user,
        "image": image,
        "qwen3vl_235b_thinking_response": response,
        "original_answer": response.split("</think>")[1],
    }


def _schema_counts(world: LabWorldConfig, stream: Stream) -> dict[RawSchema, int]:
    """Split a stream's images over the three schemas in the shares above; the first takes the rounding, and all of the tasks.

    With tasks, ``practice`` of the training images are left to the other two, and no held-out one. A third of those are
    charts if the tasks ask about charts.
    """
    total = world.train_images if stream == "train" else world.eval_images
    scale = 1.0
    if world.tasks:
        scale = world.practice / (1 - SHARES["finevision"]) if stream == "train" else 0.0
    counts = {schema: round(total * share * scale) for schema, share in SHARES.items()}
    counts["finevision"] = total - counts["llava_onevision"] - counts["mmfinereason"]
    return counts


def generate(
    world: LabWorldConfig, stream: Stream, avoid: set[str], drawn: set[str]
) -> Iterator[tuple[RawSchema, dict[str, Any]]]:
    """Yield (schema, raw row) of one stream, reproducibly.

    Args:
        avoid: image sha256 that must not be drawn (those of the streams before).
        drawn: receives the image sha256 of every row.

    Raises:
        ValueError: the world is too small to hold enough images outside ``avoid``.
    """
    index = 0
    for schema, count in _schema_counts(world, stream).items():
        for _ in range(count):
            for attempt in range(_MAX_REDRAWS):
                rng = random.Random(f"bard-lab/{world.seed}/{stream}/{index}/{attempt}")
                if world.tasks and schema == "finevision":
                    png, turns = tasks.conversation(world, index, rng)
                else:
                    png, digits = _draw(world, rng)
                sha256 = hashlib.sha256(png).hexdigest()
                if sha256 not in avoid:
                    break
            else:
                raise ValueError(
                    f"lab world of {world.rows}x{world.columns} cells: no held-out image found outside the "
                    f"{len(avoid)} other images; use more cells or fewer data.lab.train_images"
                )
            drawn.add(sha256)
            name = f"{stream}-{index:06d}"
            if world.tasks and schema == "finevision":
                yield schema, tasks.row(name, png, turns)
            else:
                yield schema, _raw_row(schema, name, png, _turns(world, schema, stream, digits, rng))
            index += 1


def write_raw(world: LabWorldConfig, folder: Path) -> dict[Split, tuple[RawSource, ...]]:
    """Write the world as raw shards ``<folder>/<split>/<schema>/00000.parquet`` and return the sources to read.

    Args:
        world: what to generate. ``folder``: an empty or new local folder.

    Returns:
        For "train" and "eval", one ``RawSource`` a schema that has at least one image.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    text_pair = pa.struct([("user", pa.string()), ("assistant", pa.string())])
    speech = pa.struct([("from", pa.string()), ("value", pa.string())])
    thinking = "qwen3vl_235b_thinking_response"
    strings = {name: pa.string() for name in ("question", thinking, "original_answer")}
    schemas: dict[RawSchema, Any] = {
        "finevision": pa.schema([("images", pa.list_(image)), ("texts", pa.list_(text_pair))]),
        "llava_onevision": pa.schema([("id", pa.string()), ("image", image), ("conversations", pa.list_(speech))]),
        "mmfinereason": pa.schema([("image", image), *strings.items()]),
    }
    avoid: set[str] = set()
    sources: dict[Split, tuple[RawSource, ...]] = {}
    streams: tuple[Stream, ...] = ("train", "eval") if world.held_out == "evaluation" else ("train", "eval", "validation")
    for stream in streams:
        split: Split = "train" if stream == "train" else "eval"  # validation comes last and takes evaluation's place
        drawn: set[str] = set()
        rows: dict[RawSchema, list[dict[str, Any]]] = {schema: [] for schema in SHARES}
        for schema, row in generate(world, stream, avoid, drawn):
            rows[schema].append(row)
        avoid = avoid | drawn
        if stream == "eval" and world.held_out == "validation":
            continue
        for schema, items in rows.items():
            target = folder / split / schema
            target.mkdir(parents=True, exist_ok=True)
            for shard, start in enumerate(range(0, len(items), ROWS_PER_SHARD)):
                table = pa.Table.from_pylist(items[start : start + ROWS_PER_SHARD], schema=schemas[schema])
                pq.write_table(table, target / f"{shard:05d}.parquet", compression="zstd")
        sources[split] = tuple(
            RawSource(
                name=f"lab-{split}-{schema}", schema_name=schema, uri=str(folder / split / schema), split=split, compare="bytes"
            )
            for schema, items in rows.items()
            if items
        )
    return sources
