"""Converters: a raw row in, one ``messages`` sample out, or a refusal that says why.

A sample is a list of {"role", "content": [{"type": "text"|"image", ...}]}, where an image item carries an index into the sample's
images. Image bytes are kept as they came; each is proven whole here, once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bard_core.config.sources import RawSource
from bard_core.data.images import CheckedImage, check_image
from bard_core.data.refusal import RowRefused
from bard_core.data.schemas import IMAGE_PLACEHOLDER, Draft, draft

ReadMedia = Callable[[str], bytes]


@dataclass(frozen=True)
class Sample:
    """One conversation. ``images[i]`` are the bytes of image i, ``image_sizes[i]`` its (height, width) in pixels.

    ``looks[i]``: how it looks (``images.look_of``). ``dropped``: the reason of each bad part that was left out.
    """

    id: str
    source: str
    messages: list[dict[str, Any]]
    images: list[bytes] = field(default_factory=list)
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    looks: list[bytes] = field(default_factory=list)
    dropped: tuple[str, ...] = ()


def _no_media(path: str) -> bytes:
    raise RowRefused("image bytes missing", f"only a path: {path!r:.80}")


def convert(row: Mapping[str, Any], source: RawSource, sample_id: str, read_media: ReadMedia = _no_media) -> Sample:
    """Convert one raw row, a dict of Python values.

    ``read_media``: the bytes of an image that the row only names.

    Raises:
        RowRefused: a column, text or image is missing or malformed, or the placeholders do not match the images.
    """
    said = draft(row, source)
    if said.videos:
        raise RowRefused("video", "videos are not trained on")
    turns, dropped = _whole_turns(said.turns, source)
    said = _placed(replace(said, turns=turns), source)
    checked, bad = _images(said.images, source, read_media)
    kept = [image for image in checked if image is not None]
    if bad and not kept:
        raise bad[0]
    return Sample(
        id=sample_id,
        source=source.name,
        messages=_messages(said.turns, [image is not None for image in checked]),
        images=[data for data, _ in kept],
        image_sizes=[(image.height, image.width) for _, image in kept],
        looks=[image.look for _, image in kept],
        dropped=(*dropped, *(refusal.reason for refusal in bad)),
    )


def _whole_turns(turns: list[tuple[str, Any]], source: RawSource) -> tuple[list[tuple[str, str]], list[str]]:
    """The turns, checked: texts, in the order of a conversation. An empty last answer may be dropped with its question."""
    dropped = []
    if source.on_bad_part == "drop" and len(turns) > 3 and turns[-1][0] == "assistant":
        answer = turns[-1][1]
        if answer is None or (isinstance(answer, str) and not answer.strip()):
            turns, dropped = turns[:-2], ["empty last turn"]
    for role, text in turns:
        if not isinstance(text, str):
            raise RowRefused("text missing", f"{role} turn holds {type(text).__name__}")
        if role != "system" and not text.replace(IMAGE_PLACEHOLDER, "").strip():
            raise RowRefused("empty question" if role == "user" else "empty answer")
        if not _is_unicode(text):
            raise RowRefused("text is not Unicode", f"{text!r:.80}")
    roles = [role for role, _ in turns]
    speakers = roles[1:] if roles[:1] == ["system"] else roles
    if not speakers or speakers != ["user", "assistant"] * (len(speakers) // 2):
        raise RowRefused("turns do not alternate", f"{' '.join(roles)[:80] or 'no turn'}; expected user assistant ...")
    return turns, dropped


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can write it
        return False
    return True


def _placed(said: Draft, source: RawSource) -> Draft:
    """Every image at a placeholder: where the text marks them, or all before the first question."""
    marked = sum(text.count(IMAGE_PLACEHOLDER) for role, text in said.turns if role == "user")
    if marked == len(said.images):
        return said
    if said.placed:  # an empty last turn took its images along
        return replace(said, images=said.images[:marked])
    if marked and source.place_images == "strict":
        raise RowRefused(
            "image placeholders do not match",
            f"{marked} {IMAGE_PLACEHOLDER} for {len(said.images)} images; place_images: first would put them before the question",
        )
    turns = [(role, text.replace(IMAGE_PLACEHOLDER, "") if role == "user" else text) for role, text in said.turns]
    first = next(number for number, (role, _) in enumerate(turns) if role == "user")
    turns[first] = ("user", IMAGE_PLACEHOLDER * len(said.images) + turns[first][1])
    return replace(said, turns=turns)


def _images(
    raw: list[Any], source: RawSource, read_media: ReadMedia
) -> tuple[list[tuple[bytes, CheckedImage] | None], list[RowRefused]]:
    """Each image with its check, None for a bad one that may be dropped; and the refusals of those."""
    checked: list[tuple[bytes, CheckedImage] | None] = []
    bad = []
    for value in raw:
        try:
            data = _bytes_of(value, read_media)
            checked.append((data, check_image(data, look=source.compare == "look")))
        except RowRefused as refusal:
            if source.on_bad_part == "refuse":
                raise
            checked.append(None)
            bad.append(refusal)
    return checked, bad


def _bytes_of(value: Any, read_media: ReadMedia) -> bytes:
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None and read_media is not _no_media else value.get("bytes")
    if isinstance(value, str):
        return read_media(value)
    return value  # type: ignore[no-any-return]  # whatever else it is, the check refuses it


def _messages(turns: list[tuple[str, Any]], whole: list[bool]) -> list[dict[str, Any]]:
    """Turns as messages, each placeholder as the number of its image among the ``whole`` ones; a bad one leaves nothing."""
    messages: list[dict[str, Any]] = []
    place = number = 0
    for role, text in turns:
        content: list[dict[str, Any]] = []
        for part_index, part in enumerate(text.split(IMAGE_PLACEHOLDER) if role == "user" else [text]):
            if part_index:
                if whole[place]:
                    content.append({"type": "image", "image": number})
                    number += 1
                place += 1
            if part.strip() or role != "user":
                content.append({"type": "text", "text": part.strip()})
        messages.append({"role": role, "content": content})
    return messages
