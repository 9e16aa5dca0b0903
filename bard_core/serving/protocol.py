"""What the server is asked and says: what a block decoder has of OpenAI's chat completions, and our options beside it."""

import base64
import binascii
import io
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field


class RefusedError(Exception):
    """A request cannot be answered: the HTTP status, and what to change."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageURL(Strict):
    url: str
    detail: str = "auto"


class Part(Strict):
    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageURL | None = None


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[Part, ...]
    name: str | None = None


class StreamOptions(Strict):
    include_usage: bool = False


class Completion(Strict):
    """``POST /v1/chat/completions``. ``show_steps`` sends a frame a denoising step; the last five are ours."""

    model: str
    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    n: Literal[1] = 1
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = Field(None, ge=1)
    strategy: Literal["dynamic", "static", "entropy", "factor"] = "dynamic"
    confidence_threshold: float = Field(0.9, gt=0.0, le=1.0)
    denoising_steps: int | None = Field(None, ge=1)
    show_steps: bool = False

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def options(self) -> dict[str, Any]:
        """For the engine; those that say nothing are left out, so that equal requests share a batch."""
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        given = {
            "strategy": self.strategy,
            "confidence_threshold": self.confidence_threshold,
            "denoising_steps": self.denoising_steps,
            "stop_strings": stop or None,
        }
        if self.temperature > 0:
            given |= {"temperature": self.temperature, "top_k": self.top_k, "seed": self.seed}
            given["top_p"] = None if self.top_p == 1.0 else self.top_p
        return {name: value for name, value in given.items() if value is not None}


def chat_messages(messages: tuple[Message, ...], max_images: int, max_pixels: int) -> list[dict[str, Any]]:
    """Messages as ``Chat`` takes them, pictures opened.

    Raises:
        RefusedError: a picture is no data: URL, cannot be read or is too large; there are too many.
    """
    found: list[dict[str, Any]] = []
    images = 0
    for message in messages:
        items: list[dict[str, Any]] = []
        for part in (Part(type="text", text=message.content),) if isinstance(message.content, str) else message.content:
            if part.type == "text":
                items.append({"type": "text", "text": part.text})
                continue
            images += 1
            if images > max_images:
                raise RefusedError(400, f"more than {max_images} images; this server takes no more")
            items.append({"type": "image", "image": picture(part.image_url.url if part.image_url else "", max_pixels)})
        role = "system" if message.role == "developer" else message.role
        found.append({"role": role, "content": items})
    return found


def picture(url: str, max_pixels: int) -> Image.Image:
    """The picture of a data: URL; an address is never fetched.

    Raises:
        RefusedError: see ``chat_messages``.
    """
    head, comma, body = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64") or not comma:
        raise RefusedError(400, "image_url.url must be data:image/...;base64,...; this server fetches no addresses")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(body, validate=True)))
        if image.width * image.height > max_pixels:
            raise RefusedError(400, f"the image has {image.width} x {image.height} pixels; at most {max_pixels} are taken")
        return image.convert("RGB")
    except (binascii.Error, OSError, ValueError, Image.DecompressionBombError) as error:
        raise RefusedError(400, f"the image cannot be read: {error}") from error
