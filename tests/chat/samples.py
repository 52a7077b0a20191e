"""Small pictures whose every flip and turn looks different, and their encodings."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
FAITHFUL: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def quadrants() -> Image.Image:
    """6 × 4: red and green above, blue and white below; every flip and turn of it looks different."""
    image = Image.new("RGB", (6, 4), WHITE)
    for color, box in ((RED, (0, 0, 3, 2)), (GREEN, (3, 0, 6, 2)), (BLUE, (0, 2, 3, 4))):
        image.paste(color, box)
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PNG = encoded(quadrants())


def same(image: Image.Image, other: Image.Image | None = None, tolerance: int = 0) -> bool:
    other = other or quadrants()
    assert image.mode == "RGB"
    if image.size != other.size:
        return False
    return int(np.abs(np.asarray(image, int) - np.asarray(other, int)).max()) <= tolerance


def see_through(mode: str) -> Image.Image:
    """Left half red, right half fully transparent."""
    if mode == "PA":  # by hand: Pillow before 12 forgets the transparency on the way there
        image = Image.frombytes(mode, (4, 2), bytes([0, 255, 0, 255, 1, 0, 1, 0]) * 2)
        image.putpalette([255, 0, 0, 0, 0, 0])
        return image
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (2, 0, 4, 2))
    return image.convert(mode)
