"""Files that cost far more to decode than their pixels say: refused by what their structure shows.

Decoders bound the memory of a picture by its pixels, and this bounds their time: a few kilobytes may hold thousands of
passes over one picture, millions of empty chunks, or tiles that are larger than the picture.
"""

from __future__ import annotations

import contextlib
import re
import struct

from PIL import Image

from behold.chat.policy import MediaPolicy
from behold.errors import MediaError

# Each far above what encoders write: progressive JPEGs have about 10 passes, a PNG one chunk for 8 KiB or more.
MAX_SCANS = 100
MAX_SEGMENTS = 20_000
MAX_EXIF_SEGMENTS = 2  # one holds 64 KiB; Pillow joins them, and before version 13 a long one costs its length squared
MAX_EXIF_BYTES = 2**17
MAX_CHUNKS = 100_000
MAX_TILES = 100_000
# Pillow decodes run-length encoded bitmaps in Python, byte by byte.
MAX_RUN_LENGTH_BYTES = 8_000_000
MAX_RUN_LENGTH_SIDE = 32_768

_PNG_SIGNATURE_BYTES = 8
# Neither stuffing nor a restart. It begins with one byte, which is looked for thirty times as fast as one or more.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_JPEG_END, _JPEG_SCAN, _JPEG_APP1 = 0xD9, 0xDA, 0xE1
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
_TIFF_OFFSETS = (273, 324)  # of strips, of tiles
_TIFF_TYPE_BYTES = dict(zip((*range(1, 14), 16, 17, 18), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8), strict=True))
_BMP_RUN_LENGTH = (1, 2)


def check_file(kind: str, data: bytes, where: str) -> None:
    """What can be told of an encoded file before its decoder sees it.

    Raises:
        MediaError: more passes, segments, chunks or tiles than any honest file has.
    """
    if kind == "JPEG":
        _check_jpeg(data, where)
    elif kind == "PNG":
        _check_png(data, where)
    elif kind == "TIFF":
        _check_tiff(data, where)


def check_header(kind: str, image: Image.Image, n_bytes: int, where: str, policy: MediaPolicy) -> None:
    """What can be told of an opened file of n_bytes before its pixels are decoded.

    Raises:
        MediaError: a TIFF tile larger than any picture may be, or a large run-length encoded bitmap.
    """
    if kind == "TIFF":
        tags = getattr(image, "tag_v2", {})
        sides = [tags.get(tag, 0) for tag in (_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT)]
        if all(isinstance(side, int) for side in sides):
            _limit(sides[0] * sides[1], policy.max_pixels, "pixels in one tile", where)
    elif kind == "BMP" and image.info.get("compression") in _BMP_RUN_LENGTH:
        _limit(max(n_bytes, image.width * image.height), MAX_RUN_LENGTH_BYTES, "run-length encoded pixels", where)
        _limit(max(image.size), MAX_RUN_LENGTH_SIDE, "run-length encoded pixels in a row or column", where)


def _check_jpeg(data: bytes, where: str) -> None:
    """Up to the end of its first picture: phones put videos and further pictures behind it."""
    at, n_segments, n_scans, n_exif = 2, 0, 0, 0
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        if not n_scans:
            n_segments += marker.start() - at  # filling bytes in the header, which decoders read one by one
        at = marker.end()
        code = data[at - 1]
        if code == _JPEG_END:
            return
        n_segments += 1
        n_scans += code == _JPEG_SCAN
        _limit(n_segments, MAX_SEGMENTS, "segments", where)
        _limit(n_scans, MAX_SCANS, "passes over its pixels", where)
        n_exif += data.startswith(b"Exif", at + 2) and code == _JPEG_APP1
        _limit(n_exif, MAX_EXIF_SEGMENTS, "EXIF segments", where)
        at += int.from_bytes(data[at : at + 2], "big")
    if not n_scans:
        _limit(n_segments + data.count(b"\xff", at), MAX_SEGMENTS, "segments", where)


def _check_png(data: bytes, where: str) -> None:
    at, n_chunks = _PNG_SIGNATURE_BYTES, 0
    while at + 8 <= len(data):
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        n_chunks += 1
        _limit(n_chunks, MAX_CHUNKS, "chunks", where)


def _check_tiff(data: bytes, where: str) -> None:
    """The first page's directory: how many tiles it lists, and how much data in all (older Pillows read one place
    as often as it is named). What is cut off is for the decoder to say."""
    order = "<" if data[:1] == b"I" else ">"
    big = b"+" in data[2:4]
    length, entry = ("Q", "HHQ") if big else ("H", "HHI")
    with contextlib.suppress(struct.error, OverflowError):
        (at,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
        (n_entries,) = struct.unpack_from(order + length, data, at)
        at += struct.calcsize(order + length)
        n_bytes = 0
        for _ in range(n_entries):
            tag, kind, count = struct.unpack_from(order + entry, data, at)
            n_bytes += count * _TIFF_TYPE_BYTES.get(kind, 0)
            if n_bytes > 2 * len(data):
                raise MediaError(f"{where} lists more data than it holds; it is damaged or was cut off.")
            if tag in _TIFF_OFFSETS:
                _limit(count, MAX_TILES, "strips or tiles", where)
            at += 20 if big else 12


def _limit(number: int, most: int, name: str, where: str) -> None:
    if number > most:
        raise MediaError(f"{where} has more than {most} {name}; save it again in an image editor, as PNG or JPEG.")
