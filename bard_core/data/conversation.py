"""The system turn: one text that training, evaluation and every front end put before a conversation that brings none."""

from collections.abc import Sequence
from typing import Any


def with_system_turn(messages: Sequence[dict[str, Any]], system_prompt: str | None) -> list[dict[str, Any]]:
    """The messages, led by ``system_prompt`` unless they have a system turn of their own, be it an empty one.

    Args:
        messages: chat messages, content as a list of items.
        system_prompt: what ``config.json`` records under ``bard``; None: no system turn; "": an empty one.
    """
    if system_prompt is None or (messages and messages[0]["role"] == "system"):
        return list(messages)
    return [{"role": "system", "content": [{"type": "text", "text": system_prompt}]}, *messages]
