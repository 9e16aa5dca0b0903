"""Converters: a raw row in, one ``messages`` sample out, or a refusal that says why.

A sample is a list of {"role", "content": [{"type": "text"|"image"|"video", ...}]}. An image item carries an index into the
sample's images; a video item the indices [first, last) of its moments among them, its fps and the numbers of its frames. Image
bytes are kept as they came; each is proven whole here, once.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bard_core.config.sources import RawSource
from bard_core.data.images import CheckedImage, check_image
from bard_core.data.refusal import RowRefused
from bard_core.data.schemas import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Draft, draft
from bard_core.data.videos import Video, frames_of

ReadMedia = Callable[[str], bytes]
SeeVideo = Callable[[Any, ReadMedia, bool], Video]
_PLACEHOLDER = re.compile(f"({IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER})")


@dataclass(frozen=True)
class Sample:
    """One conversation. ``images[i]`` are the bytes of image i, ``image_sizes[i]`` its (height, width) in pixels.

    ``looks[i]``: how it looks (``images.look_of``). ``dropped``: the reason of each bad part that was left out. ``grids``: of the
    images whose grid in patches is known, a video's moments.
    """

    id: str
    source: str
    messages: list[dict[str, Any]]
    images: list[bytes] = field(default_factory=list)
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    looks: list[bytes] = field(default_factory=list)
    dropped: tuple[str, ...] = ()
    grids: dict[int, tuple[int, int, int]] = field(default_factory=dict)


def _no_media(path: str) -> bytes:
    raise RowRefused("image bytes missing", f"only a path: {path!r:.80}")


def convert(
    row: Mapping[str, Any], source: RawSource, sample_id: str, read_media: ReadMedia = _no_media, see: SeeVideo | None = None
) -> Sample:
    """Convert one raw row, a dict of Python values.

    ``read_media``: the bytes of an image or video that the row only names. ``see``: reads videos (``videos.VideoReader``).

    Raises:
        RowRefused: a column, text, image or video is missing or malformed, or the placeholders do not match.
    """
    said = draft(row, source)
    if said.videos and see is None:
        raise RowRefused("video", "videos are not read here")
    turns, dropped = _whole_turns(said.turns, source)
    said = _placed(replace(said, turns=turns), source)
    look = source.compare == "look"
    images, bad = _whole_parts(said.images, source, lambda value: _image(value, read_media, look))
    videos, bad_videos = _whole_parts(said.videos, source, lambda value: see(value, read_media, look) if see else None)
    bad += bad_videos
    if bad and not any(part is not None for part in images + videos):
        raise bad[0]
    sample = Sample(id=sample_id, source=source.name, messages=[], dropped=(*dropped, *(refusal.reason for refusal in bad)))
    parts = {IMAGE_PLACEHOLDER: iter(images), VIDEO_PLACEHOLDER: iter(videos)}
    sample.messages.extend({"role": role, "content": _content(sample, role, text, parts)} for role, text in said.turns)
    return sample


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
        if role != "system" and not _PLACEHOLDER.sub("", text).strip():
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
    """Every image and video at a placeholder: where the text marks them, or all before the first question."""
    for placeholder, kind in ((VIDEO_PLACEHOLDER, "videos"), (IMAGE_PLACEHOLDER, "images")):
        there = getattr(said, kind)
        marked = sum(text.count(placeholder) for role, text in said.turns if role == "user")
        if marked == len(there):
            continue
        if said.placed:  # an empty last turn took its own along
            said = replace(said, **{kind: there[:marked]})
            continue
        if marked and source.place_images == "strict":
            raise RowRefused(
                f"{kind[:-1]} placeholders do not match",
                f"{marked} {placeholder} for {len(there)} {kind}; place_images: first would put them before the question",
            )
        turns = [(role, text.replace(placeholder, "") if role == "user" else text) for role, text in said.turns]
        first = next(number for number, (role, _) in enumerate(turns) if role == "user")
        turns[first] = ("user", placeholder * len(there) + turns[first][1])
        said = replace(said, turns=turns)
    return said


def _whole_parts(raw: Sequence[Any], source: RawSource, check: Callable[[Any], Any]) -> tuple[list[Any], list[RowRefused]]:
    """Each part as ``check`` sees it, None for a bad one that may be dropped; and the refusals of those."""
    checked: list[Any] = []
    bad = []
    for value in raw:
        try:
            checked.append(check(value))
        except RowRefused as refusal:
            if source.on_bad_part == "refuse":
                raise
            checked.append(None)
            bad.append(refusal)
    return checked, bad


def _image(value: Any, read_media: ReadMedia, look: bool) -> tuple[bytes, CheckedImage]:
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None and read_media is not _no_media else value.get("bytes")
    data = read_media(value) if isinstance(value, str) else value
    checked = check_image(data, look=look)
    if len(frames_of(data)) > 1:
        raise RowRefused("image does not decode", "it ends as a moment of a video")
    return data, checked


def _content(sample: Sample, role: str, text: str, parts: Mapping[str, Iterator[Any]]) -> list[dict[str, Any]]:
    """A turn's items; the images and moments of its placeholders go into the sample, a bad one leaves nothing."""
    content: list[dict[str, Any]] = []
    for piece in _PLACEHOLDER.split(text) if role == "user" else [text]:
        if role != "user" or piece not in parts:
            if piece.strip() or role != "user":
                content.append({"type": "text", "text": piece.strip()})
        elif isinstance(part := next(parts[piece]), Video):
            first = len(sample.images)
            last = first + len(part.moments)
            sample.images.extend(part.moments)
            sample.image_sizes.extend([part.size] * len(part.moments))
            sample.looks.extend(part.looks)
            sample.grids.update(dict.fromkeys(range(first, last), part.grid))
            content.append({"type": "video", "images": [first, last], "fps": part.fps, "frames": part.frames})
        elif part is not None:
            data, image = part
            content.append({"type": "image", "image": len(sample.images)})
            sample.images.append(data)
            sample.image_sizes.append((image.height, image.width))
            sample.looks.append(image.look)
    return content
