"""Pictures that strangers send: whatever the bytes, a MediaError in bounded time, and nothing of this machine in it."""

from __future__ import annotations

import base64
import io
import re
import struct
import time
import warnings
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from behold.chat.guards import MAX_CHUNKS, MAX_SCANS, MAX_SEGMENTS, MAX_TILES
from behold.chat.media import load_image
from behold.chat.policy import MediaPolicy
from behold.errors import MediaError
from tests.chat.samples import FORMATS, PNG, encoded, quadrants, same, see_through

SERVER = MediaPolicy.for_server()
LEAKS = re.compile(r"0x[0-9a-f]{4,}|<[A-Za-z_]|object at|(?<!/)/(?!host)[a-z]+/|site-packages|PIL|Traceback")
SLOWEST_S = 5.0


def load(form: object, policy: MediaPolicy = SERVER) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
        return load_image(form, policy=policy)


def refusal(form: object, policy: MediaPolicy = SERVER) -> str:
    """What a server says of a bad picture, having looked that it says it soon and gives nothing away."""
    started = time.monotonic()
    with pytest.raises(MediaError) as caught:
        load(form, policy)
    assert time.monotonic() - started < SLOWEST_S
    said = str(caught.value)
    assert not LEAKS.search(said), said
    return said


def png_chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *between: bytes, depth: int = 8, color: int = 0) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + png_chunk(b"IEND")


def tiff(tags: dict[int, Sequence[int]], body: bytes = b"") -> bytes:
    """A little-endian TIFF of one page whose tags are all 32-bit numbers; the body follows the directory."""
    places, extra = b"", b""
    after = 8 + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}I", *values)
        if len(data) > 4:
            data, extra = struct.pack("<I", after + len(extra)), extra + data
        places += struct.pack("<HHI4s", tag, 4, len(values), data)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + places + b"\0" * 4 + extra + body


def bitmap(width: int, height: int, runs: bytes) -> bytes:
    """A run-length encoded BMP with a palette of black."""
    start = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 54 + 1024)
    return start + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0) + b"\0" * 1024 + runs


def progressive(n_more: int) -> bytes:
    """A progressive JPEG whose last pass over the pixels comes n_more times more."""
    data = encoded(quadrants(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * n_more + b"\xff\xd9"


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
GREY_TILE = {256: [16], 257: [16], 258: [8], 259: [8], 262: [1], 277: [1], 324: [8], 325: [9]}


# --- what is no picture, or only the beginning of one ------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.02, 0.2, 0.6, 0.9])
def test_truncated(kind: str, part: float) -> None:
    data = encoded(NOISE, kind)
    refusal(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "header"),
        (b"\xff\xd8\xff", "header"),
        (b"GIF89a" + b"\xff" * 20, "GIF"),
        (b"BM" + b"\xff" * 60, "BMP"),
        (b"II*\0" + b"\xff" * 60, "TIFF"),
        (b"MM\0+" + b"\xff" * 60, "TIFF"),
        (b"RIFF\xff\xff\xff\xffWEBPVP8 ", "WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x20ftypheic" + b"\0" * 40, "HEIC"),
        (b"\0\0\0\x20ftypavif" + b"\0" * 40, "AVIF"),
        (b"just some text", "not a picture"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not a picture"),
        (b"P6 4 4 255\n" + b"\0" * 48, "not a picture"),
        (b"\0" * 1000, "not a picture"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_no_picture(data: bytes, word: str) -> None:
    assert word in refusal(data)
    assert word in refusal(f"data:image/png;base64,{base64.b64encode(data).decode()}")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64,AAAAA", "not valid base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64", "comma"),
        ("data:,", "empty"),
        ("/etc/passwd", "neither"),
        ("file:///etc/passwd", "Send the picture itself"),
        ("ftp://host/a.png", "Send the picture itself"),
        ("https://host/a.png", "--allow-urls"),
        ("", "neither"),
    ],
)
def test_texts(text: str, word: str) -> None:
    with pytest.raises(MediaError, match=re.escape(word)):
        load_image(text, policy=SERVER)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("A" * 30 + " " * 3_000_000 + "!", "neither"),
        ("A " * 3_000_000, "not a picture"),
        ("a" * 3_000_000 + ":", "neither"),
        ("data:;base64," + "%41" * 3_000_000, "percent-encoded"),
        ("data:," + "%41" * 3_000_000, "percent-encoded"),
        ("data:" + "x" * 3_000_000, "no comma"),
        ("https://host/" + "a" * 3_000_000, "at most 16384"),
        ("https://" + "é." * 8_000 + "/", "no host"),
        ("https://user@" + "x" * 16_000, "user name"),
    ],
    ids=lambda value: value[:20],
)
def test_long_texts_are_read_in_linear_time(text: str, word: str) -> None:
    assert word in refusal(text, MediaPolicy.for_server(allow_urls=True))


@pytest.mark.parametrize("form", [None, 3, True, [], {"url": "x"}, object()])
def test_things_that_are_no_text(form: object) -> None:
    refusal(form)


def test_good_data_comes_in_every_usual_spelling() -> None:
    text = base64.b64encode(PNG).decode()
    for form in (
        f"data:image/png;base64,{text}",
        f"data:;base64,{text.rstrip('=')}",
        text,
        f" data:image/png;base64,{text}\n",
    ):
        assert same(load_image(form, policy=SERVER))


# --- pictures that are larger than they look ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (png(2**31 - 1, 2**31 - 1), "2147483647 × 2147483647"),
        (png(0, 5), "header"),
        (png(7000, 7000), "at most 40000000 pixels"),
        (png(8, 8, png_chunk(b"IDAT") * MAX_CHUNKS), "chunks"),
        (png(8, 8, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10**7))), "PNG"),
        (png(8, 8, png_chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 10**8)), png_chunk(b"IDAT")), "PNG"),
        (b"GIF89a" + struct.pack("<HH", 65535, 65535) + encoded(quadrants(), "GIF")[10:], "65535 × 65535"),
        (b"GIF89a" + struct.pack("<HH3sc4H", 1, 1, b"\0\0\0", b",", 0, 0, 65535, 65535) + b"\0\x08\0;", "GIF"),
        (progressive(MAX_SCANS), "passes"),
        (b"\xff\xd8" + b"\xff\xe9\0\2" * (MAX_SEGMENTS + 1) + encoded(quadrants(), "JPEG")[2:], "segments"),
        (b"\xff\xd8" + b"\xff" * 10**6, "segments"),
        (b"\xff\xd8" + b"\xff" * 10**6 + encoded(quadrants(), "JPEG")[2:], "segments"),
        (encoded(quadrants(), "JPEG")[:-20] + b"\xff" * 10**6, "JPEG"),
        (b"\xff\xd8" + b"\xff\0" * MAX_SEGMENTS + encoded(quadrants(), "JPEG")[2:], "segments"),
        (tiff({**GREY_TILE, 322: [30_000], 323: [30_000]}), "pixels in one tile"),
        (tiff({**GREY_TILE, 322: [1], 323: [1], 324: [8] * (MAX_TILES + 1)}), "tiles"),
        (tiff({**GREY_TILE, 256: [60_000], 257: [60_000], 322: [16], 323: [16]}), "60000 × 60000"),
        (tiff({40_000 + n: [0] * 1000 for n in range(3)})[:3000], "more data than it holds"),
        (b"\xff\xd8" + b"\xff\xe1\0\x08Exif\0\0" * 3 + encoded(quadrants(), "JPEG")[2:], "EXIF segments"),
        (bitmap(39_000_000, 1, b"\1\0\0\0\0\1"), "run-length"),
        (bitmap(32_000, 32, b"\1\0" * 4_100_000), "run-length"),
        (bitmap(32_769, 1, b"\1\0\0\2\xff\xff"), "run-length"),
        (b"\0" * (20 * 2**20 + 1), "at most 20971520"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_more_work_than_pixels(data: bytes, word: str) -> None:
    assert word in refusal(data)


def test_what_honest_files_hold_is_far_from_the_limits() -> None:
    """A phone's JPEG with a video behind it, a bitmap of runs, a TIFF of strips and one of tiles, many small chunks."""
    jpeg = encoded(quadrants(), "JPEG", quality=100, subsampling=0, progressive=True)
    assert same(load_image(jpeg + b"\xff\xda\0\0" * 1000, policy=SERVER), tolerance=2)
    assert load_image(progressive(20), policy=SERVER).size == (6, 4)
    assert load_image(bitmap(300, 2, b"\xff\0\x2d\0\0\0\xff\0\x2d\0\0\1"), policy=SERVER).size == (300, 2)
    assert load_image(encoded(Image.new("L", (5000, 5000)), "TIFF", compression="tiff_deflate"), policy=SERVER)
    assert load_image(tiff({**GREY_TILE, 259: [1], 322: [16], 323: [16], 325: [256]}, b"\7" * 256), policy=SERVER)
    rows = zlib.compress(b"\0" * 9 * 8)
    assert load_image(png(8, 8, *(png_chunk(b"IDAT", rows[i : i + 1]) for i in range(len(rows)))), policy=SERVER)


# --- pictures that are unusual and sound -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        NOISE.convert("CMYK"),
        NOISE.convert("L"),
        NOISE.convert("1"),
        Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16),
    ],
    ids=lambda image: image.mode,
)
def test_colour_modes(image: Image.Image) -> None:
    kind = "JPEG" if image.mode == "CMYK" else "PNG"
    assert load_image(encoded(image, kind), policy=SERVER).size == (64, 64)


def test_palettes_with_transparency_animations_and_broken_exif() -> None:
    palette = see_through("RGBA").quantize(4)
    assert load_image(encoded(palette, "PNG"), policy=SERVER).getpixel((3, 0)) == (255, 255, 255)
    animated = encoded(quadrants(), "GIF", save_all=True, append_images=[quadrants().rotate(90)] * 200)
    assert same(load_image(animated, policy=SERVER))
    for exif in (b"Exif\0\0" + b"\xff" * 50, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        assert load(encoded(quadrants(), "JPEG", exif=exif)).size == (6, 4)


def test_metadata_that_names_one_place_again_and_again() -> None:
    """A directory of 400 entries, each of the same 4 MB: the picture is read, and the metadata is not."""
    entries = b"".join(struct.pack("<HHII", 40_000 + n, 1, 4_000_000, 5_000) for n in range(400))
    exif = (b"II*\0" + struct.pack("<IH", 8, 400) + entries).ljust(4_005_000, b"\0")
    started = time.monotonic()
    assert same(load(encoded(quadrants(), "PNG", exif=exif)))
    assert time.monotonic() - started < SLOWEST_S


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FORMATS), st.integers(0, 3000), st.binary(max_size=6), st.integers(0, 3000))
def test_damaged_files_say_nothing_of_this_machine(kind: str, at: int, by: bytes, keep: int) -> None:
    data = encoded(quadrants().resize((24, 16)), kind)
    data = data[: at % len(data)] + by + data[at % len(data) + len(by) : max(keep, 8)]
    said = ""
    try:
        assert load(data).mode == "RGB"
    except MediaError as error:
        said = str(error).partition(" starting b")[0]  # what follows are the client's own first bytes
    assert not LEAKS.search(said), said


def test_objects_of_a_decoder_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: io.BytesIO) -> Image.Image:
        raise OSError(f"cannot identify image file {io.BytesIO()!r} in /usr/lib/decoder")

    monkeypatch.setitem(load_image.__globals__["decode"].__globals__["_DECODERS"], "PNG", fails)
    assert "OSError" in refusal(PNG)
