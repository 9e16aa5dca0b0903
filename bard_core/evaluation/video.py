"""Frames of a video file, spread evenly, with what Qwen3-VL's processor wants to know of their times."""

from collections.abc import Sequence
from typing import Any

import numpy as np

DEFAULT_FRAMES = 32


def with_frames(conversations: Sequence[list[dict[str, Any]]], count: int) -> tuple[list[Any], list[dict[str, Any]]]:
    """Paths of videos become up to ``count`` frames each; returns new chats, and the frames' metadata in order."""
    metadata: list[dict[str, Any]] = []

    def read(item: dict[str, Any]) -> dict[str, Any]:
        if item["type"] != "video" or not isinstance(item["video"], str):
            return item
        frames, about = read_frames(item["video"], count)
        metadata.append(about)
        return {"type": "video", "video": frames}

    chats = [[{**message, "content": [read(i) for i in message["content"]]} for message in chat] for chat in conversations]
    return chats, metadata


def read_frames(path: str, count: int) -> tuple[Any, dict[str, Any]]:
    """Up to ``count`` frames as uint8 [frames, height, width, 3], and the ``video_metadata`` of the processor.

    Raises:
        ValueError: the file holds no picture.
    """
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 24)
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    if not pictures:
        raise ValueError(f"{path} holds no video frame")
    chosen = np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int)
    frames = np.stack([pictures[index] for index in chosen])
    metadata = {
        "total_num_frames": len(pictures),
        "fps": fps,
        "frames_indices": chosen.tolist(),
        "duration": len(pictures) / fps,
        "height": frames.shape[1],
        "width": frames.shape[2],
        "video_backend": "pyav",
    }
    return frames, metadata
