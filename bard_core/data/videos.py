"""Videos: a file's bytes or a list of frames in, moments out.

A processor of Qwen3-VL's kind writes a video as its moments, each a time and a picture of two frames, which its tower sees one by
one. So a video is, from here on, that many pictures among a sample's images: of the same grids, at the same positions.

A moment's bytes are those of its two frames and a footer. Whatever opens pictures sees the first.
"""

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from bard_core.data.images import MAX_IMAGE_PIXELS, check_image, look_of, open_image
from bard_core.data.refusal import RowRefused

FRAMES = 2  # of a moment
MAX_FRAMES_READ = 400_000  # of a file: nearly two hours at 60 a second
JPEG_QUALITY = 95
_FOOTER, _MARK = struct.Struct("<Q8s"), b"\0BARDtwo"


@dataclass(frozen=True)
class Video:
    """``moments``: bytes, each with a ``grid`` (1, height, width) in patches and a look. ``frames``: numbers in the file."""

    moments: list[bytes]
    grid: tuple[int, int, int]
    size: tuple[int, int]
    looks: list[bytes]
    fps: float
    frames: list[int]


def joined(first: bytes, second: bytes) -> bytes:
    """A moment of two encoded frames."""
    return first + second + _FOOTER.pack(len(first), _MARK)


def frames_of(data: bytes) -> tuple[bytes, ...]:
    """A moment's two frames; a plain picture alone."""
    if data[-len(_MARK) :] != _MARK:
        return (data,)
    place, _ = _FOOTER.unpack(data[-_FOOTER.size :])
    return data[:place], data[place : -_FOOTER.size]


class VideoReader:
    """Reads videos as a processor would: its choice of frames, its sizes."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.settings: Any = getattr(processor, "video_processor", None)

    def __call__(self, value: Any, read_media: Callable[[str], bytes], look: bool) -> Video:
        """``value``: bytes or path of a file, {"bytes": ..., "path": ...}, or {"frames": [...], "fps": ...}; ``look``: see looks.

        Raises:
            RowRefused: this processor takes no such videos, or this one cannot be read.
        """
        self._check_processor()
        if isinstance(value, dict) and value.get("frames") is not None:
            encoded, fps, numbers, size = self._given(value, read_media)
        else:
            encoded, fps, numbers, size = self._decoded(_bytes_of(value, read_media))
        if len(encoded) < FRAMES:
            raise RowRefused("video too short", f"{len(encoded)} frame")
        encoded += encoded[-1:] * (len(encoded) % FRAMES)
        moments = [joined(*encoded[at : at + FRAMES]) for at in range(0, len(encoded), FRAMES)]
        looks = [look_of(open_image(first)) if look else b"" for first in encoded[::FRAMES]]
        return Video(moments, self._grid(len(numbers), *size), size, looks, fps, numbers)

    def _check_processor(self) -> None:
        if not hasattr(self.processor, "replace_video_token") or self.settings is None:
            raise RowRefused("video", f"{type(self.processor).__name__} is not one of Qwen3-VL's kind")
        images = self.processor.image_processor
        names = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std", "rescale_factor")
        unlike = [name for name in names if getattr(self.settings, name) != getattr(images, name)]
        if unlike or self.settings.temporal_patch_size != FRAMES:
            raise RowRefused("video", f"the processor's videos have another {', '.join(unlike) or 'temporal_patch_size'}")

    def _given(self, value: dict[str, Any], read_media: Callable[[str], bytes]) -> Any:
        """Frames as pictures, kept as they came: (frames, fps, numbers, size)."""
        fps, given = value.get("fps"), value["frames"]
        if not isinstance(fps, int | float) or not fps > 0:
            raise RowRefused("frames without fps", f"fps is {fps!r:.40}; a moment's time is written before it")
        wanted = self._numbers(len(given), float(fps), file=False)
        frames = [_bytes_of(given[number], read_media) for number in wanted]
        checked = [check_image(frame) for frame in frames]
        sizes = {(image.height, image.width) for image in checked}
        if len(sizes) > 1:
            raise RowRefused("frames of different sizes", ", ".join(f"{width}x{height}" for height, width in sorted(sizes)))
        return frames, float(fps), wanted, next(iter(sizes), (0, 0))

    def _decoded(self, data: bytes) -> Any:
        """The chosen frames of a file, resized and encoded: (frames, fps, numbers, size)."""
        try:
            return self._read(data)
        except RowRefused:
            raise
        except Exception as error:  # FFmpeg's errors are many
            raise RowRefused("video does not decode", f"{type(error).__name__}: {error}") from error

    def _read(self, data: bytes) -> Any:
        import av

        container: Any
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            size, fps = (stream.height, stream.width), float(stream.average_rate or 24)
            if size[0] * size[1] > MAX_IMAGE_PIXELS:
                raise RowRefused("video too large", f"{size[1]}x{size[0]} is more than {MAX_IMAGE_PIXELS} pixels a frame")
            count = stream.frames or _count(data)
            if count > MAX_FRAMES_READ:
                raise RowRefused("video too long", f"{count} frames are more than {MAX_FRAMES_READ}")
            wanted = self._numbers(count, fps, file=True)
            grid, last, chosen = self._grid(len(wanted), *size), wanted[-1], set(wanted)
            found = {
                number: self._encoded(frame.to_ndarray(format="rgb24"), grid)
                for number, frame in _up_to(container.decode(stream), last)
                if number in chosen
            }
        if len(found) < len(chosen):
            raise RowRefused("video does not decode", f"{len(found)} of {len(chosen)} frames came, of {count}")
        return [found[number] for number in wanted], fps, wanted, size

    def _numbers(self, count: int, fps: float, file: bool) -> list[int]:
        """Which frames to take, by the processor's own choice; of frames that were given, all that it may have."""
        from transformers.video_utils import VideoMetadata

        settings = self.settings
        if count < FRAMES:
            raise RowRefused("video too short", f"{count} frame")
        if not file:
            most = min(count, settings.max_frames)
            return [int(number) for number in settings.sample_frames(VideoMetadata(count, fps), num_frames=most, fps=None)]
        asked = {"num_frames": settings.num_frames} if settings.num_frames else {"fps": settings.fps}
        return [int(number) for number in settings.sample_frames(VideoMetadata(count, fps), **asked)]

    def _grid(self, count: int, height: int, width: int) -> tuple[int, int, int]:
        """A moment's grid in patches, after the processor's resize of ``count`` frames."""
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

        size, patch = self.settings.size, self.settings.patch_size
        limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        try:
            high, wide = smart_resize(count, height, width, FRAMES, patch * self.settings.merge_size, **limits)
        except ValueError as error:
            raise RowRefused("video too long and thin", str(error)) from error
        return 1, high // patch, wide // patch

    def _encoded(self, frame_HW3: Any, grid: tuple[int, int, int]) -> bytes:
        """A frame in its final size, so that reading it again is cheap."""
        import torch

        patch = self.settings.patch_size
        frame_3HW = resized(torch.from_numpy(frame_HW3).permute(2, 0, 1), grid[1] * patch, grid[2] * patch)
        buffer = io.BytesIO()
        picture = Image.fromarray(frame_3HW.permute(1, 2, 0).numpy())
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return buffer.getvalue()


def resized(frame_3HW: Any, height: int, width: int) -> Any:
    """A frame (uint8) as the video processor resizes it."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    if frame_3HW.shape[-2:] == (height, width):
        return frame_3HW
    return transforms.resize(frame_3HW, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)


def _bytes_of(value: Any, read_media: Callable[[str], bytes]) -> bytes:
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str):
        return read_media(value)
    if not isinstance(value, bytes) or not value:
        raise RowRefused("video bytes missing", f"got {type(value).__name__}")
    return value


def _count(data: bytes) -> int:
    """Frames of a file whose header does not say."""
    import av

    container: Any
    with av.open(io.BytesIO(data)) as container:
        count = sum(1 for _ in _up_to(container.decode(video=0), MAX_FRAMES_READ))
    return count


def _up_to(frames: Iterator[Any], last: int) -> Iterator[tuple[int, Any]]:
    for number, frame in enumerate(frames):
        if number > last:
            return
        yield number, frame
