"""The raw schemas: what a row of each says, as turns of text and images, before anything is checked.

``messages`` is the chat format of the paper's repository: a list of {"role", "content"}, content being a text or a list of
{"type": "text", "text": ...} and {"type": "image", "image": ...}: a path, bytes, or the number of one of the row's ``images``;
likewise {"type": "video", "video": ...}, which may also be a list of frames with their "fps".
The others are public datasets' own: FineVision, LLaVA-OneVision-1.5 and MMFineReason.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bard_core.config.sources import COLUMNS, RawSchema, RawSource
from bard_core.data.refusal import RowRefused

IMAGE_PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"
THINK_START, THINK_END = "<think>", "</think>"
THINKING_COLUMN = "qwen3vl_235b_thinking_response"
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

# Of each group at least one column must be there, in the shard and in the row.
REQUIRED: dict[RawSchema, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "finevision": (("texts",),),
    "llava_onevision": (("conversations",),),
    "mmfinereason": (("question",), (THINKING_COLUMN, "original_answer")),
}


@dataclass(frozen=True)
class Draft:
    """What a row says. ``turns``: (role, text); the k-th placeholder in the users' texts is the k-th of ``images`` or ``videos``.

    ``placed``: the placeholders were made here, of parts that named their images, so they fit; else the text brought them.
    """

    turns: list[tuple[str, Any]]
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)
    placed: bool = False


def draft(row: Mapping[str, Any], source: RawSource) -> Draft:
    """Read one row.

    Raises:
        RowRefused: a column is missing, a speaker unknown, a rating too low.
    """
    for group in REQUIRED[source.schema_name]:
        if all(row.get(column) is None for column in group):
            columns = ", ".join(COLUMNS[source.schema_name])
            raise RowRefused("column missing", f"{' or '.join(group)} (a {source.schema_name} row has {columns})")
    for column, least in source.min_ratings.items():
        rating = row.get(column)
        if not isinstance(rating, int | float) or rating < least:
            raise RowRefused("rating below the minimum", f"{column} is {rating}, wanted {least}")
    return _READERS[source.schema_name](row)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _finevision(row: Mapping[str, Any]) -> Draft:
    turns = []
    for turn in _listed(row["texts"]):
        if not isinstance(turn, dict) or not {"user", "assistant"} <= turn.keys():
            raise RowRefused("malformed turn", f"expected user and assistant, got {turn!r:.80}")
        turns += [("user", turn["user"]), ("assistant", turn["assistant"])]
    return Draft(turns, _listed(row.get("images")))


def _llava_onevision(row: Mapping[str, Any]) -> Draft:
    """``from``/``value`` or ``role``/``content``; a dataset that mixes both has nulls under the keys that a turn does not use."""
    turns = []
    for turn in _listed(row["conversations"]):
        spoken = turn if isinstance(turn, dict) else {}
        speaker = spoken.get("role") if spoken.get("from") is None else spoken["from"]
        if speaker not in SPEAKERS:
            raise RowRefused("unknown speaker", f"expected from or role: {' | '.join(SPEAKERS)}, got {turn!r:.80}")
        turns.append((SPEAKERS[speaker], spoken.get("content") if spoken.get("value") is None else spoken["value"]))
    return Draft(turns, _listed(row.get("image")))


def _mmfinereason(row: Mapping[str, Any]) -> Draft:
    """The thinking response, or the original answer where there is none."""
    response = row.get(THINKING_COLUMN)
    if response is None or (isinstance(response, str) and not response.strip()):
        response = row.get("original_answer")
    if isinstance(response, str):
        if THINK_END in response and THINK_START not in response:  # its generation prompt held the opening tag
            response = THINK_START + response
        if response.count(THINK_START) != response.count(THINK_END):
            raise RowRefused("thinking does not close", f"{response!r:.80}")
    return Draft([("user", row["question"]), ("assistant", response)], _listed(row.get("image")))


def _messages(row: Mapping[str, Any]) -> Draft:
    """Contents that name their images get a placeholder for each; a row of plain texts keeps the placeholders it has."""
    said = row["messages"]
    if isinstance(said, str):  # tables of mixed contents keep them as JSON
        try:
            said = json.loads(said)
        except ValueError as error:
            raise RowRefused("messages are not JSON", f"{said!r:.80}") from error
    own, own_videos = _listed(row.get("images")), _listed(row.get("videos"))
    found: dict[str, list[Any]] = {"image": [], "video": []}
    turns: list[tuple[str, Any]] = []
    listed = False
    for message in _listed(said):
        if not isinstance(message, dict) or message.get("role") not in SPEAKERS:
            raise RowRefused("unknown speaker", f"expected role: user | assistant | system, got {message!r:.80}")
        role, content = SPEAKERS[message["role"]], message.get("content")
        if isinstance(content, list):
            listed = True
            content = "".join(_part(part, role, found, {"image": own, "video": own_videos}) for part in content)
        turns.append((role, content))
    if listed and (found["image"] or found["video"] or not own):
        return Draft(turns, found["image"], found["video"], placed=True)
    return Draft(turns, own, own_videos)


def _part(part: Any, role: str, found: dict[str, list[Any]], own: dict[str, list[Any]]) -> str:
    """One item of a content as text; an image or video is put down and leaves its placeholder."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise RowRefused("text missing", f"{role} turn holds {type(text).__name__}")
        if IMAGE_PLACEHOLDER in text or VIDEO_PLACEHOLDER in text:
            raise RowRefused("placeholder written out in a text", f"{text!r:.80}")
        return text
    if kind not in ("image", "video") or role != "user":
        raise RowRefused("unknown part", f"{role} turn holds {part!r:.80}; expected text, and in a question image or video")
    if kind == "video" and isinstance(part.get("video"), list):
        found[kind].append({"frames": part["video"], "fps": part.get("fps") or part.get("sample_fps")})
        return VIDEO_PLACEHOLDER
    value = next((part[key] for key in (kind, "path", "bytes") if part.get(key) is not None), None)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        number = len(found[kind]) if value is None else value
        if not 0 <= number < len(own[kind]):
            raise RowRefused(f"{kind} missing", f"part {part!r:.80} of a row with {len(own[kind])} {kind}s")
        value = own[kind][number]
    found[kind].append(value)
    return IMAGE_PLACEHOLDER if kind == "image" else VIDEO_PLACEHOLDER


_READERS: dict[RawSchema, Callable[[Mapping[str, Any]], Draft]] = {
    "messages": _messages,
    "finevision": _finevision,
    "llava_onevision": _llava_onevision,
    "mmfinereason": _mmfinereason,
}
