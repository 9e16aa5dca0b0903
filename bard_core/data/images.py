"""Images: raw bytes to upright RGB, and the proof that they are whole. Bytes are kept as they came.

A PNG is proven by the checksums of its chunks, which costs a fiftieth of decoding it and finds more; other formats are decoded.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageFile, ImageOps

from bard_core.data.refusal import RowRefused

MAX_IMAGE_PIXELS = 64_000_000  # a larger header is a decompression bomb or a scan no model reads
MAX_ASPECT_RATIO = 200  # the limit of Qwen2-VL's image processor
LOOK_SIDE, LOOK_BYTES = 16, 32  # a look is the signs of 16 x 16 low frequencies
_SMALL = 8 * LOOK_SIDE  # pixels a side that a look needs
_FLAT = 2.0  # standard deviation of grey below which a picture has no look: all plain pictures would be alike
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 0x0112
_EXIF_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width


@dataclass(frozen=True)
class CheckedImage:
    """Size in pixels after the EXIF turn, and the look (``LOOK_BYTES``), empty where none was asked for or there is none."""

    height: int
    width: int
    look: bytes = b""


def rgb(image: Image.Image) -> Image.Image:
    """To RGB: what is transparent shows white, 16 bits are scaled to 8."""
    if image.mode.startswith("I"):
        import numpy as np

        values = np.asarray(image, dtype=np.int64)
        image = Image.fromarray((values // 257 if values.max(initial=0) > 255 else values).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def open_image(data: bytes) -> Image.Image:
    """Decode image bytes to RGB, turned upright by their EXIF orientation."""
    with Image.open(io.BytesIO(data)) as image:
        return rgb(ImageOps.exif_transpose(image))


def look_of(image: Image.Image) -> bytes:
    """Perceptual hash: pictures that look alike differ in few of its bits, whatever their format or size."""
    import imagehash
    import numpy as np

    grey = rgb(image).convert("L")
    grey = grey.reduce(max(1, min(grey.size) // _SMALL))
    if np.asarray(grey).std() < _FLAT:
        return b""
    return np.packbits(imagehash.phash(grey, hash_size=LOOK_SIDE).hash.reshape(-1)).tobytes()


@contextmanager
def _strictly() -> Iterator[None]:
    """Pillow's own default, which lmms-eval turns off for the whole process; its bomb warning is laxer than our limit."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def check_image(data: Any, look: bool = False) -> CheckedImage:
    """Prove that the bytes are a whole image; ``look``: and see how it looks, which decodes it.

    Raises:
        RowRefused: no bytes, not an image, damaged, too many pixels, or too long and thin.
    """
    if not isinstance(data, bytes) or not data:
        raise RowRefused("image bytes missing", f"got {type(data).__name__}")
    try:
        with _strictly():
            return _checked(data, look)
    except RowRefused:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own, higher limit
        raise RowRefused("image too large", str(error)) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise RowRefused("image does not decode", f"{type(error).__name__}: {error}") from error


def _checked(data: bytes, look: bool) -> CheckedImage:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > MAX_IMAGE_PIXELS:
            raise RowRefused("image too large", f"{width}x{height} is more than {MAX_IMAGE_PIXELS} pixels")
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise RowRefused("image too long and thin", f"{width}x{height}: a side ratio above {MAX_ASPECT_RATIO}")
        turned = _check_png(data) if image.format == "PNG" else True
        sideways, seen = False, b""
        if look or turned:
            image.draft("RGB", (_SMALL, _SMALL))  # JPEG: decode at a fraction of the size, still reading every byte
            image.load()
            sideways = image.getexif().get(_EXIF_ORIENTATION) in _EXIF_SIDEWAYS  # a TIFF has turned itself while loading
            upright = ImageOps.exif_transpose(image)  # as ``open_image`` will; a malformed EXIF block shows here
            seen = look_of(upright) if look else b""
    return CheckedImage(*((width, height) if sideways else (height, width)), seen)


def _check_png(data: bytes) -> bool:
    """Every chunk's checksum, from the signature to the end. True if there may be an EXIF turn, which only decoding shows."""
    view, place, names = memoryview(data), len(_PNG_SIGNATURE), set()
    while b"IEND" not in names:
        if len(data) < place + 12:
            raise RowRefused("image does not decode", f"PNG: ends within a chunk at byte {place}")
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if len(data) < end + 4 or zlib.crc32(view[place + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise RowRefused("image does not decode", f"PNG: chunk {name!r} at byte {place} does not have its checksum")
        names.add(name)
        if name in (b"tEXt", b"zTXt", b"iTXt") and view[place + 8 : end].tobytes().startswith(b"Raw profile type exif"):
            names.add(b"eXIf")
        place = end + 4
    if b"IDAT" not in names:
        raise RowRefused("image does not decode", "PNG: no pixels")
    return b"eXIf" in names
