"""Where a conversation's assistant turns are: between two markers that the chat template writes.

Training lays blocks out anew at every turn, so the decoder of a prompt with earlier turns has to find them as training did.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TurnMarkers:
    """``header``: token ids that open an assistant turn. ``end``: the token that closes it."""

    header: tuple[int, ...]
    end: int


def turn_markers(processor: Any) -> TurnMarkers:
    """Read the markers off the chat template, by rendering a question with and without its answer.

    Raises:
        ValueError: the template has no header or no end token for the assistant.
    """
    probe = "A"
    asked = [{"role": "user", "content": [{"type": "text", "text": "Q"}]}]
    answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": probe}]}]
    question = str(processor.apply_chat_template(asked, tokenize=False))
    prompt = str(processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    rest = str(processor.apply_chat_template(answered, tokenize=False))[len(question) :]
    header = _common_start(prompt[len(question) :], rest)
    tail = _ids(processor, rest[rest.rindex(probe) + len(probe) :])
    if not header or not tail:
        raise ValueError(
            f"the chat template of {type(processor).__name__} does not mark where an assistant turn starts and ends; "
            "set processor.chat_template to one with a header and an end token"
        )
    return TurnMarkers(tuple(_ids(processor, header)), tail[0])


def find_turns(ids: Sequence[int], markers: TurnMarkers) -> list[tuple[int, int]]:
    """[start, end) of every finished assistant turn: from after its header to its end token, included."""
    tokens, header = list(ids), list(markers.header)
    turns: list[tuple[int, int]] = []
    position = 0
    while (start := _find(tokens, header, position)) is not None:
        try:
            position = tokens.index(markers.end, start) + 1
        except ValueError:
            break
        turns.append((start, position))
    return turns


def turns_of_prompt(ids: Sequence[int], markers: TurnMarkers) -> list[tuple[int, int]]:
    """The same, with the turn that the prompt leaves open, as far as it goes: what of an answer was written beforehand."""
    closed = find_turns([*ids, markers.end], markers)
    return [(start, min(end, len(ids))) for start, end in closed if start < len(ids)]


def recorded_markers(folder: Path) -> dict[str, Any]:
    """What ``config.json`` should say of a model that was trained on every turn; nothing where a folder has no chat template."""
    from transformers import AutoProcessor

    if not any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return {}
    read: Any = AutoProcessor.from_pretrained
    markers = turn_markers(read(folder))
    return {"prefix_blocks": "turns", "turn_start": list(markers.header), "turn_end": markers.end}


def _find(tokens: list[int], header: list[int], position: int) -> int | None:
    """The index behind the next header from ``position`` on."""
    while True:
        try:
            position = tokens.index(header[0], position)
        except ValueError:
            return None
        if tokens[position : position + len(header)] == header:
            return position + len(header)
        position += 1


def _common_start(first: str, second: str) -> str:
    """The longest text that both begin with."""
    same = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    return first[:same]


def _ids(processor: Any, text: str) -> list[int]:
    ids: list[int] = processor.tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return ids
