"""Encoded bytes, arrays and PIL images of any mode to one thing: an upright 8-bit RGB picture.

The decoder is chosen by the first bytes, never by a name, and only six decoders can be reached. Width × height is
checked on the header, before pixels are decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from behold.chat.guards import MAX_EXIF_BYTES, check_file, check_header
from behold.chat.policy import MediaPolicy
from behold.errors import MediaError
from behold.pixels import Turned, prepare

FORMATS = "PNG, JPEG, WebP, GIF, BMP and TIFF"

# The plugin classes directly, not Image.open: that would try every decoder Pillow has, and warn by its own limit.
_DECODERS: dict[str, Callable[[BytesIO], ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,  # of a multi-picture JPEG (phones, 3D cameras) this is the first picture
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
)
# What people send by mistake, so that the message can name it.
_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or office document"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document (SVG?)"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"{", "JSON text"),
)
_INSIDE = re.compile(r"0x[0-9a-fA-F]|[<>/\\]")
_EXIF_ORIENTATION = 0x0112
_EXIF_PLACES = ("exif", "Raw profile type exif")
# EXIF orientation to the operation that undoes it.
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, where: str, policy: MediaPolicy) -> Image.Image:
    """An encoded picture to upright RGB; of an animation the first frame, of a multi-page TIFF the first page.

    Raises:
        MediaError: empty, too large, not one of FORMATS, truncated or corrupt.
    """
    if not data:
        raise MediaError(f"{where} is empty; a picture is needed ({FORMATS}).")
    if len(data) > policy.max_bytes:
        raise MediaError(f"{where} is {len(data)} bytes; at most {policy.max_bytes} are read. Send a smaller picture.")
    kind = sniff(data)
    if kind is None:
        raise MediaError(f"{where} is {_describe(data)}, not a picture that can be read; {FORMATS} can.")
    check_file(kind, data, where)
    try:
        image = _DECODERS[kind](BytesIO(data))
    except Exception as error:  # decoders answer hostile bytes with many exception types
        raise MediaError(
            f"{where} starts like a {kind} file but its header cannot be read ({_said(error)})."
        ) from error
    check_header(kind, image, len(data), where, policy)
    if policy.jpeg_side is not None:
        image.draft(None, (policy.jpeg_side,) * 2)  # of the formats here only JPEG has it
    if kind == "JPEG":
        _check_size(image, f"{where} (JPEG)", policy)
        prepare(image, len(data))
    rgb, turn = _rgb_and_turn(image, f"{where} ({kind})", policy)
    return (
        rgb if turn is None else Turned(rgb, turn)
    )  # by whoever needs it: half of the time goes where it is made small


def upright_rgb(image: Image.Image, where: str, policy: MediaPolicy) -> Image.Image:
    """A PIL image of any mode, decoded or not, to upright RGB on white. The given image is not changed.

    Raises:
        MediaError: no pixels, too many pixels, or a file behind it that is truncated or corrupt.
    """
    rgb, turn = _rgb_and_turn(image, where, policy)
    if turn is not None:
        return rgb.transpose(turn)
    return rgb.copy() if rgb is image else rgb


def _rgb_and_turn(image: Image.Image, where: str, policy: MediaPolicy) -> tuple[Image.Image, Image.Transpose | None]:
    """(the image in RGB, itself where it is that: copying takes half as long as decoding; what turns it upright)."""
    _check_size(image, where, policy)
    try:
        image.load()
        _check_size(image, where, policy)  # a GIF frame may be larger than the screen its header states
        orientation = _orientation(image)
        rgb = _rgb(image)
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError(f"{where} of {_size(image)} does not fit in memory; send a smaller picture.") from error
    except Exception as error:  # decoders answer hostile bytes with many exception types
        raise MediaError(
            f"{where} cannot be decoded ({_said(error)}); the file is truncated or damaged. "
            "Open and save it again in an image editor, or send another copy."
        ) from error
    return rgb, _UPRIGHT.get(orientation)


def sniff(data: bytes) -> str | None:
    """The picture format that these first bytes announce, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)


def _said(error: Exception) -> str:
    """A decoder's own words, unless they speak of objects, addresses or paths of this machine."""
    text = str(error)
    return text if text and not _INSIDE.search(text) else type(error).__name__


def _describe(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return f"an ISO media file ({data[8:12].decode('latin-1')!r}: HEIC, AVIF or video)"
    start = data[:64].lstrip().lower()
    for magic, name in _STRANGERS:
        if start.startswith(magic.lower()):
            return name
    return f"{len(data)} bytes starting {data[:8]!r}"


def _size(image: Image.Image) -> str:
    return f"{image.width} × {image.height} pixels"


def _check_size(image: Image.Image, where: str, policy: MediaPolicy) -> None:
    if image.width < 1 or image.height < 1:
        raise MediaError(f"{where} has {_size(image)}: there is nothing to see in it.")
    if image.width * image.height > policy.max_pixels:
        raise MediaError(
            f"{where} has {_size(image)}; at most {policy.max_pixels} pixels are decoded. Send a smaller picture."
        )


def _orientation(image: Image.Image) -> int:
    if any(len(image.info.get(key) or b"") > MAX_EXIF_BYTES for key in _EXIF_PLACES):
        return 1
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
        return int(value)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which did decode
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode to RGB, itself if it is that already; transparent pixels show white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """16- and 32-bit greyscale to 8 bits: by its nominal range, not by the values that happen to occur."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        top = 1.0 if np.nanmax(values, initial=0.0) <= 1.0 else 255.0
    else:
        # Mode I also carries 16-bit files; only values beyond that say it is really 32 bits deep.
        top = 65535.0 if values.max(initial=0) <= 65535 else float(2**31 - 1)
    scaled = np.clip(np.nan_to_num(values.astype(np.float64), posinf=top) * (255.0 / top), 0, 255)
    grey = Image.fromarray(np.rint(scaled).astype(np.uint8))
    see_through = image.info.get("transparency")
    if isinstance(see_through, int):  # one grey value of a 16-bit PNG that stands for "nothing here"
        alpha = np.where(values == see_through, 0, 255).astype(np.uint8)
        grey = Image.merge("LA", (grey, Image.fromarray(alpha)))
    return grey
