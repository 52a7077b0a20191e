"""Pixels: resize, crop, pad and normalise, as pure functions equal to transformers' PIL processors.

Pictures are PIL images of mode RGB until they are normalised, then float32 arrays (3, H, W).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from behold.errors import MediaError
from behold.processing.grids import Size

Pixels = NDArray[np.float32]
# A picture one pixel high would otherwise be blown up to gigabytes by "shortest edge to 336".
MAX_RESIZED_PIXELS = 64_000_000
# And a line of pixels put on a square would be their number squared: 1 GB for the longest side that is let through.
MAX_SQUARE_SIDE = 16_000


def size_of(image: Image.Image) -> Size:
    return image.height, image.width


def resize(image: Image.Image, size: Size, resample: int) -> Image.Image:
    """Resize to (height, width) with one of Pillow's filters (0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic …).

    Raises:
        MediaError: the result would be empty or enormous, because the picture is extremely long and narrow.
    """
    height, width = size
    if not 0 < height * width <= MAX_RESIZED_PIXELS:
        raise MediaError(
            f"a picture of {image.width} × {image.height} pixels would become {width} × {height}; at most "
            f"{MAX_RESIZED_PIXELS} pixels are allowed. It is too long and narrow: cut it into several pictures."
        )
    from behold.kernels import resample as ours  # here only: it stands on torch, which text and small pictures need not

    if ours.suits(image, (width, height), resample):
        return ours.resize(image, (width, height), resample)
    return image.resize((width, height), resample=Image.Resampling(resample))


def center_crop(image: Image.Image, size: Size) -> Image.Image:
    """The middle (height, width) of a picture; black where the picture is smaller."""
    height, width = size
    # Where it is smaller the odd pixel of padding goes to the top or left, and a crop's odd pixel to the bottom or
    # right; floor division gives both.
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))


def pad_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """The picture in the middle of the smallest square of one colour that holds it.

    Raises:
        MediaError: the square would be enormous.
    """
    side = max(image.size)
    if image.width == image.height:
        return image
    if side > MAX_SQUARE_SIDE:
        raise MediaError(
            f"a picture of {image.width} × {image.height} pixels would be put on a square; at most {MAX_SQUARE_SIDE} "
            "pixels a side are allowed. Make it smaller, or cut it into several pictures."
        )
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def normalize(
    image: Image.Image,
    *,
    rescale_factor: float | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Pixels:
    """RGB (H, W) to float32 (3, H, W): value × rescale_factor, then (value − mean) / std per channel.

    None leaves that step out. There are only 256 values, so each channel is one look-up in a table.
    """
    table = np.arange(256, dtype=np.float64)
    values = (table if rescale_factor is None else table * rescale_factor).astype(np.float32)
    channels = np.repeat(values[None], 3, axis=0)
    if mean is not None and std is not None:
        channels = (channels - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]
    array = np.asarray(image)
    pixels = np.empty((3, *array.shape[:2]), np.float32)
    for channel in range(3):  # "clip": no byte is outside, and numpy does not look
        np.take(channels[channel], array[..., channel], out=pixels[channel], mode="clip")
    return pixels


def digest(pixels: Pixels, *settings: object) -> str:
    """A name for these pixels under these settings: equal names mean equal embeddings, for one model."""
    hasher = hashlib.blake2b(repr((pixels.shape, settings)).encode(), digest_size=20)
    hasher.update(np.ascontiguousarray(pixels).view(np.uint8).data)
    return hasher.hexdigest()
