"""Frames of a video file, spread evenly, with what Qwen3-VL's processor wants to know of their times."""

from typing import Any

import numpy as np

DEFAULT_FRAMES = 32


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
