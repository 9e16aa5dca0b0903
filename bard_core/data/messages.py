"""Converters: a row of a public data set in, one ``messages`` sample out, or a refusal that says why.

Three schemas are read: FineVision (``images``, ``texts``), LLaVA-OneVision-1.5 (``id``, ``image``, ``conversations``) and
MMFineReason (``question``, ``image``, ``qwen3vl_235b_thinking_response``, ``original_answer``). A sample is the chat format
of the paper's repository: a list of {"role", "content": [{"type": "text"|"image", ...}]}, where an image item carries an
index into the sample's images. Image bytes are kept as they came; they are opened once here to prove that they decode.

A bad row raises ``RowRefused``: the caller counts the reason and quarantines the row, it is never silently dropped.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageFile, ImageOps

from bard_core.config.sections import RawSchema

IMAGE_PLACEHOLDER = "<image>"
THINK_START, THINK_END = "<think>", "</think>"
THINKING_COLUMN = "qwen3vl_235b_thinking_response"
MAX_IMAGE_PIXELS = 64_000_000  # a larger header is a decompression bomb or a scan no model reads
MAX_ASPECT_RATIO = 200  # the limit of Qwen2-VL's image processor
_EXIF_ORIENTATION = 0x0112
_EXIF_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width

COLUMNS: dict[RawSchema, tuple[str, ...]] = {
    "finevision": ("images", "texts"),
    "llava_onevision": ("id", "image", "conversations"),
    "mmfinereason": ("question", "image", THINKING_COLUMN, "original_answer"),
}


class RowRefused(Exception):
    """A row that cannot become a sample. ``reason``: a short countable phrase; ``detail``: what exactly was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Sample:
    """One conversation. ``images[i]`` are the bytes of image i, ``image_sizes[i]`` its (height, width) in pixels."""

    id: str
    source: str
    messages: list[dict[str, Any]]
    images: list[bytes] = field(default_factory=list)
    image_sizes: list[tuple[int, int]] = field(default_factory=list)


def open_image(data: bytes) -> Image.Image:
    """Decode image bytes to RGB, turned upright by their EXIF orientation, exactly as Hugging Face's loader does."""
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def _no_truncated_images() -> Iterator[None]:
    """Pillow's own default, which lmms-eval turns off for the whole process when it is imported."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def check_image(data: Any) -> tuple[int, int]:
    """(height, width) in pixels after the EXIF turn, having proven that the bytes decode to the end.

    Raises:
        RowRefused: no bytes, not an image, truncated, too many pixels, or too long and thin.
    """
    if not isinstance(data, bytes) or not data:
        raise RowRefused("image bytes missing", f"got {type(data).__name__}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit, below, is stricter
            image = Image.open(io.BytesIO(data))
        with image, _no_truncated_images():
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise RowRefused("image too large", f"{width}x{height} is more than {MAX_IMAGE_PIXELS} pixels")
            if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
                raise RowRefused("image too long and thin", f"{width}x{height}: a side ratio above {MAX_ASPECT_RATIO}")
            image.draft("RGB", (1, 1))  # JPEG: decode at an eighth of the size, still reading every byte
            image.load()
            sideways = image.getexif().get(_EXIF_ORIENTATION) in _EXIF_SIDEWAYS  # a TIFF has turned itself while loading
            ImageOps.exif_transpose(image).convert("RGB")  # as ``open_image`` will; a malformed EXIF block shows here
    except RowRefused:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own, higher limit
        raise RowRefused("image too large", str(error)) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise RowRefused("image does not decode", f"{type(error).__name__}: {error}") from error
    return (width, height) if sideways else (height, width)


def convert(row: dict[str, Any], schema: RawSchema, sample_id: str, source: str) -> Sample:
    """Convert one raw row.

    Args:
        row: the row as a dict of Python values. ``schema``: which public schema it is in.
        sample_id: unique id written to the sample. ``source``: name of the data set.

    Raises:
        RowRefused: a column, text or image is missing or malformed, or the placeholders do not match the images.
    """
    missing = [column for column in REQUIRED_COLUMNS[schema] if row.get(column) is None]
    if missing:
        raise RowRefused("column missing", f"{', '.join(missing)} (a {schema} row has {', '.join(COLUMNS[schema])})")
    raw_images, turns = _READERS[schema](row)
    images = [image.get("bytes") if isinstance(image, dict) else None for image in raw_images]
    sizes = [check_image(data) for data in images]
    return Sample(sample_id, source, _messages(turns, len(images)), images, sizes)  # type: ignore[arg-type]


def _finevision(row: dict[str, Any]) -> tuple[list[Any], list[tuple[str, str]]]:
    turns = []
    for turn in row["texts"]:
        if not isinstance(turn, dict) or not {"user", "assistant"} <= turn.keys():
            raise RowRefused("malformed turn", f"expected user and assistant, got {turn!r:.80}")
        turns += [("user", turn["user"]), ("assistant", turn["assistant"])]
    return list(row.get("images") or []), turns


def _llava_onevision(row: dict[str, Any]) -> tuple[list[Any], list[tuple[str, str]]]:
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    turns = []
    for turn in row["conversations"]:
        if not isinstance(turn, dict) or turn.get("from") not in roles:
            raise RowRefused("unknown speaker", f"expected from: {' | '.join(roles)}, got {turn!r:.80}")
        turns.append((roles[turn["from"]], turn.get("value")))
    image = row.get("image")
    return ([] if image is None else [image]), turns  # type: ignore[return-value]


def _mmfinereason(row: dict[str, Any]) -> tuple[list[Any], list[tuple[str, str]]]:
    response = row[THINKING_COLUMN]
    if isinstance(response, str):
        if THINK_END in response and THINK_START not in response:  # its generation prompt held the opening tag
            response = THINK_START + response
        if response.count(THINK_START) != response.count(THINK_END):
            raise RowRefused("thinking does not close", f"{response!r:.80}")
    image = row.get("image")
    return ([] if image is None else [image]), [("user", row["question"]), ("assistant", response)]


_Reader = Callable[[dict[str, Any]], tuple[list[Any], list[tuple[str, str]]]]
_READERS: dict[RawSchema, _Reader] = {
    "finevision": _finevision,
    "llava_onevision": _llava_onevision,
    "mmfinereason": _mmfinereason,
}
# a row without an image is a text-only sample; an image the text points to is demanded by the placeholder check
REQUIRED_COLUMNS: dict[RawSchema, tuple[str, ...]] = {
    "finevision": ("texts",),
    "llava_onevision": ("conversations",),
    "mmfinereason": ("question", THINKING_COLUMN),
}


def _messages(turns: list[tuple[str, str]], num_images: int) -> list[dict[str, Any]]:
    """Check the order of speakers and put the images at their placeholders, or before the first question if none is marked."""
    for role, text in turns:
        if not isinstance(text, str):
            raise RowRefused("text missing", f"{role} turn holds {type(text).__name__}")
        if role != "system" and not text.replace(IMAGE_PLACEHOLDER, "").strip():
            raise RowRefused("empty question" if role == "user" else "empty answer")
    roles = [role for role, _ in turns]
    speakers = roles[1:] if roles[:1] == ["system"] else roles
    if not speakers or speakers != ["user", "assistant"] * (len(speakers) // 2):
        raise RowRefused("turns do not alternate", f"{' '.join(roles)[:80] or 'no turn'}; expected user assistant ...")
    marked = sum(text.count(IMAGE_PLACEHOLDER) for role, text in turns if role == "user")
    if marked not in (0, num_images):
        raise RowRefused("image placeholders do not match", f"{marked} {IMAGE_PLACEHOLDER} for {num_images} images")
    unplaced = num_images if marked == 0 else 0
    messages: list[dict[str, Any]] = []
    next_image = 0
    for role, text in turns:
        content: list[dict[str, Any]] = []
        if role == "user":
            content += [{"type": "image", "image": index} for index in range(unplaced)]
            unplaced = 0
            for part_index, part in enumerate(text.split(IMAGE_PLACEHOLDER)):
                if part_index:
                    content.append({"type": "image", "image": next_image})
                    next_image += 1
                if part.strip():
                    content.append({"type": "text", "text": part.strip()})
        else:
            content.append({"type": "text", "text": text.strip()})
        messages.append({"role": role, "content": content})
    return messages
