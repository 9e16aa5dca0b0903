"""Images: damage is found, transparency and depth are seen right, and looks tell the same picture from another."""

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bard_core.config.sections.data import LabWorldConfig
from bard_core.data.images import LOOK_BYTES, check_image, open_image
from bard_core.data.likeness import ALIKE, alike, differing
from bard_core.data.refusal import RowRefused
from bard_core.lab import world


def picture(seed: int, side: int = 128) -> Image.Image:
    """Colours at all scales, as a photograph has them."""
    rng = np.random.default_rng(seed)
    scales = [2**power for power in range(1, 7)]
    waves = sum(np.kron(rng.normal(size=(n, n, 3)), np.ones((side // n, side // n, 1))) / n**0.5 for n in scales)
    return Image.fromarray(((waves - waves.min()) / np.ptp(waves) * 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("look", [False, True])
def test_every_damaged_png_is_found(look: bool) -> None:
    whole = encoded(picture(0))
    assert check_image(whole, look).height == 128
    rng = random.Random(0)
    for trial in range(60):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            del damaged[rng.randrange(50, len(whole) - 1) :]
        else:
            damaged[rng.randrange(20, len(whole))] ^= 1 << rng.randrange(8)
        with pytest.raises(RowRefused, match="image does not decode"):
            check_image(bytes(damaged), look)


def test_a_png_is_proven_without_decoding_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(0))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda *_: pytest.fail("decoded"))
    assert check_image(data).width == 128


def test_a_png_without_pixels_is_refused() -> None:
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0), b"IEND"]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    with pytest.raises(RowRefused):
        check_image(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


def test_what_is_transparent_shows_white_and_sixteen_bits_are_scaled() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert open_image(encoded(clear)).getpixel((3, 3)) == (255, 255, 255)
    palette = Image.new("P", (8, 8), 0)
    assert open_image(encoded(palette, transparency=0)).getpixel((3, 3)) == (255, 255, 255)
    deep = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    assert open_image(encoded(deep)).getpixel((3, 3)) == (128, 128, 128)
    assert open_image(encoded(Image.new("RGB", (8, 8), (1, 2, 3)))).getpixel((3, 3)) == (1, 2, 3)


def looks(images: list[bytes]) -> Any:
    return np.frombuffer(b"".join(check_image(data, look=True).look for data in images), np.uint8).reshape(-1, LOOK_BYTES)


def test_a_hundred_pictures_as_png_and_jpeg_are_a_hundred_pairs() -> None:
    pictures = [picture(seed) for seed in range(100)]
    png = looks([encoded(image) for image in pictures])
    for jpeg in (
        [encoded(image, "JPEG", quality=75) for image in pictures],
        [encoded(image.resize((96, 96)), "JPEG", quality=90) for image in pictures],
    ):
        assert alike(png, looks(jpeg)).tolist() == [[i, i] for i in range(100)]


def test_pictures_that_differ_in_what_they_show_are_not_alike_and_plain_ones_have_no_look() -> None:
    cells = [world._draw(LabWorldConfig(), random.Random(seed))[0] for seed in range(60)]
    found = looks(cells)
    assert alike(found, found).tolist() == [[i, i] for i in range(60)]
    assert check_image(encoded(Image.new("RGB", (64, 64), (9, 9, 9))), look=True).look == b""


def test_alike_pairs_are_those_of_comparing_all_with_all() -> None:
    rng = np.random.default_rng(0)
    some = rng.integers(0, 256, (60, LOOK_BYTES), dtype=np.uint8)
    flips = [(i, rng.choice(256, size=rng.integers(0, 2 * ALIKE), replace=False)) for i in rng.integers(0, 60, 90)]
    bits = np.array([np.unpackbits(some[i]) ^ np.isin(np.arange(256), flipped) for i, flipped in flips])
    others = np.packbits(bits.astype(np.uint8), axis=1)
    expected = np.argwhere(differing(some[:, None], others[None]) <= ALIKE)
    assert len(expected) > 30 and alike(some, others).tolist() == expected.tolist()
