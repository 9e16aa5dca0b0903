"""What a model is asked: words with pictures and videos from files, or a held-out sample of the demo's data."""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import typer


def question(prompt: str, images: list[Path], videos: list[Path]) -> dict[str, Any]:
    """A user turn: pictures and videos first, then the text.

    Raises:
        OSError: a file is not there, or is no picture.
    """
    from PIL import Image

    media: list[dict[str, Any]] = [{"type": "image", "image": Image.open(path).convert("RGB")} for path in images]
    for path in videos:
        from bard_core.evaluation.video import DEFAULT_FRAMES, read_frames

        frames, about = read_frames(str(path), DEFAULT_FRAMES)
        media.append({"type": "video", "video": frames, "metadata": about})
    return {"role": "user", "content": [*media, {"type": "text", "text": prompt}]}


def sample(number: int) -> tuple[str, list[Path]]:
    """The first question of a held-out sample of the newest dataset in BARD_HOME, its pictures written to files there.

    Says on standard error what is asked and what is expected.

    Raises:
        typer.BadParameter: no such sample, or no dataset.
    """
    from bard_core.data.heldout import held_out
    from bard_core.store import storage

    home = storage.home()
    known = sorted(home.glob("artifacts/prepare/dataset-*/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not known:
        raise typer.BadParameter(f"{home} holds no dataset yet: make demo prepares one")
    row = next(islice(held_out(str(known[-1].parent)), number, None), None)
    if row is None:
        raise typer.BadParameter(f"no held-out sample {number} in {known[-1].parent}; the first is 0")
    messages = json.loads(row["messages"])
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    items = [item for message in messages[: answers[0]] for item in message["content"]]
    words = "\n".join(item["text"] for item in items if item["type"] == "text")
    pictures = []
    for place, data in enumerate(row["images"][: sum(item["type"] == "image" for item in items)]):
        pictures.append(home / "samples" / f"{number}-{place}.png")
        pictures[-1].parent.mkdir(parents=True, exist_ok=True)
        pictures[-1].write_bytes(data)
    expected = "".join(item["text"] for item in messages[answers[0]]["content"])
    print(*pictures, f"asked: {words}", f"expected: {expected}", sep="\n", file=sys.stderr)
    return words, pictures
