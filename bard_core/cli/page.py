"""One answer as a page: a slider over its denoising steps, the images, and the autoregressive run beside it. Needs no network."""

import base64
import json
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("page.html")


def answer_page(
    prompt: str,
    images: Sequence[Path],
    frames: Sequence[dict[str, Any]],
    pace: str,
    about: str,
    ar: dict[str, Any] | None,
) -> str:
    """The page.

    Args:
        frames: ``show.as_data``. pace, about: a line of numbers; what was run.
        ar: the autoregressive run, as ``pieces`` (each token's text) and ``pace``; None: there was none.
    """
    data = {
        "prompt": prompt,
        "images": [data_url(path) for path in images],
        "frames": frames,
        "pace": pace,
        "about": about,
        "ar": ar,
    }
    # Inside a script element nothing but "</" could end it.
    return TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", json.dumps(data).replace("<", "\\u003c"))


def data_url(path: Path) -> str:
    """A file as a data: URL."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
