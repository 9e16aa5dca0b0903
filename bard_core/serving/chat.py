"""A model with its processor: chat messages in, text out. The command line and the server both speak through it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bard_core.models import bard_settings, load

Messages = Sequence[dict[str, Any]]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Chat:
    """``processor`` is a tokenizer where the model reads text only."""

    model: Any
    processor: Any

    @classmethod
    def open(
        cls, path_or_id: str | Path, block_size: int | None = None, device: str | None = None, dtype: str | None = None
    ) -> "Chat":
        """Load both. By default in bfloat16 on a GPU where there is one, else in float32 on the CPU.

        Raises:
            ValueError, OSError: see ``models.load``; a dtype that is none of ``DTYPES``.
        """
        from transformers import AutoProcessor

        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = DTYPES[dtype] if dtype else torch.bfloat16 if place.startswith("cuda") else torch.float32
        model = load(path_or_id, block_size=block_size, device=place, dtype=kind)
        read: Any = AutoProcessor.from_pretrained
        return cls(model, read(path_or_id))

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def reads_images(self) -> bool:
        return self.processor is not self.tokenizer

    @property
    def block_size(self) -> int:
        return bard_settings(self.model).block_size

    @cached_property
    def special_tokens(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    def inputs(self, messages: Messages) -> Any:
        """The processor's tensors for one chat that the model is to go on with.

        Args:
            messages: as Hugging Face has them: role, and content that is text or items of type text, image or video. A video
                is its frames, with what the processor wants to know of their times under ``metadata``.

        Raises:
            ValueError: images for a model that reads text only, or a model without a chat template.
        """
        if not self.reads_images:
            messages = [{**message, "content": _only_text(message["content"])} for message in messages]
        if getattr(self.processor, "chat_template", None) is None and self.tokenizer.chat_template is None:
            raise ValueError("this model has no chat template (chat_template.jinja), so it cannot be asked in messages")
        options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        items = [item for message in messages if not isinstance(message["content"], str) for item in message["content"]]
        if videos := [item["metadata"] for item in items if item["type"] == "video"]:
            options["processor_kwargs"] = {"video_metadata": videos, "do_sample_frames": False}
        return self.processor.apply_chat_template(list(messages), **options)

    def text(self, tokens: Iterable[int]) -> str:
        """What the tokens say, special ones left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Every token's own text, for showing; special ones are empty."""
        decode: Callable[..., str] = self.tokenizer.decode
        return ["" if token in self.special_tokens else decode([token]) for token in tokens]


def _only_text(content: str | Sequence[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    if other := [item["type"] for item in content if item["type"] != "text"]:
        raise ValueError(f"this model reads text only; take the {other[0]} out")
    return "".join(item["text"] for item in content)
