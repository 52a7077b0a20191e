"""Picture formats and colour modes: whatever a file holds, the result is upright RGB on white."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from behold.chat.decode import decode
from behold.chat.media import MediaPolicy, load_image
from behold.errors import MediaError, OptionError
from tests.chat.samples import BLUE, FAITHFUL, FORMATS, GREEN, RED, WHITE, encoded, quadrants, same, see_through


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str) -> None:
    large = quadrants().resize((48, 32), Image.Resampling.NEAREST)
    assert same(load_image(encoded(large, kind, **FAITHFUL.get(kind, {}))), large, tolerance=6 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    # The stored picture is the upright one with the inverse operation applied.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = quadrants().resize((48, 32), Image.Resampling.NEAREST)
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif.tobytes(), **FAITHFUL.get(kind, {}))
    tolerance = 6 if kind == "JPEG" else 0
    assert same(load_image(data), upright, tolerance)
    assert same(load_image(Image.open(io.BytesIO(data))), upright, tolerance)


def test_damaged_exif_does_not_lose_the_picture() -> None:
    data = encoded(quadrants().resize((48, 32)), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_image(data).size == (48, 32)


@pytest.mark.parametrize(
    "image",
    [see_through("RGBA"), see_through("RGBa"), see_through("LA"), see_through("PA")],
    ids=lambda image: image.mode,
)
def test_transparency_shows_white(image: Image.Image) -> None:
    loaded = load_image(image)
    assert loaded.getpixel((3, 1)) == WHITE
    assert loaded.getpixel((0, 0)) != WHITE


def test_half_transparent_is_mixed_with_white() -> None:
    assert load_image(Image.new("RGBA", (1, 1), (0, 0, 0, 127))).getpixel((0, 0)) == (128, 128, 128)


def test_transparency_that_png_and_gif_state_as_a_colour() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    for data in (
        encoded(palette, "PNG", transparency=1),
        encoded(palette, "PNG", transparency=b"\xff\x00"),
        encoded(palette, "GIF", transparency=1),
    ):
        loaded = load_image(data)
        assert (loaded.getpixel((0, 0)), loaded.getpixel((1, 0))) == (RED, WHITE)
    rgb = Image.new("RGB", (2, 1), RED)
    rgb.putpixel((1, 0), BLUE)
    assert load_image(encoded(rgb, "PNG", transparency=BLUE)).getpixel((1, 0)) == WHITE
    for grey in (Image.new("L", (2, 1), 7), Image.new("1", (2, 1), 0)):
        assert load_image(encoded(grey, "PNG", transparency=grey.getpixel((0, 0)))).getpixel((0, 0)) == WHITE


def test_palette_without_transparency() -> None:
    image = quadrants().convert("P", palette=Image.Palette.ADAPTIVE)
    assert same(load_image(encoded(image)))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_use_the_nominal_range(mode: str) -> None:
    values = np.array([[0, 65535, 32768, 257]], np.uint16)
    image = Image.fromarray(values)
    image = image.convert("I") if mode == "I" else image
    if mode == "I;16B":
        image = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    loaded = np.asarray(load_image(image))[0, :, 0]
    assert loaded.tolist() == [0, 255, 128, 1]


def test_a_dark_sixteen_bit_picture_stays_dark() -> None:
    assert load_image(encoded(Image.fromarray(np.full((2, 2), 200, np.uint16)))).getpixel((0, 0)) == (1, 1, 1)


def test_sixteen_bit_grey_with_a_transparent_value() -> None:
    data = encoded(Image.fromarray(np.array([[0, 65535]], np.uint16)), "PNG")
    chunk = b"tRNS" + struct.pack(">H", 0)
    framed = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    place = data.index(b"IDAT") - 4
    assert load_image(data[:place] + framed + data[place:]).getpixel((0, 0)) == WHITE


def test_deep_and_floating_modes() -> None:
    deep = Image.fromarray(np.array([[0, 2**31 - 1]], np.int32))
    assert np.asarray(load_image(deep))[0, :, 0].tolist() == [0, 255]
    for values in ([[0.0, 1.0, 0.5]], [[0.0, 255.0, 127.5]]):
        image = Image.fromarray(np.array(values, np.float32))
        assert np.asarray(load_image(image))[0, :, 0].tolist() == [0, 255, 128]
    odd = Image.fromarray(np.array([[np.nan, np.inf, -5.0]], np.float32))
    assert np.asarray(load_image(odd))[0, :, 0].tolist()[::2] == [0, 0]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "L", "1"])
def test_other_colour_modes(mode: str) -> None:
    image = quadrants().convert("L").convert("RGB") if mode in ("L", "1") else quadrants()
    assert same(load_image(image.convert(mode)), image.convert(mode).convert("RGB"))


def test_cmyk_jpeg_keeps_its_colours() -> None:
    flat = Image.new("RGB", (16, 16), (250, 20, 20)).convert("CMYK")
    red, green, blue = load_image(encoded(flat, "JPEG")).getpixel((8, 8))  # type: ignore[misc]
    assert red > 200 and green < 80 and blue < 80


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE, GREEN)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **FAITHFUL.get(kind, {}))
    assert load_image(data).getpixel((4, 4)) == RED


def test_a_jpeg_can_be_decoded_at_a_part_of_its_size() -> None:
    file = io.BytesIO()
    Image.new("RGB", (1600, 1200), (200, 30, 60)).save(file, "JPEG", quality=95)
    sizes = {side: decode(file.getvalue(), "it", MediaPolicy(jpeg_side=side)).size for side in (100, 300, 601, 5000)}
    assert sizes == {100: (200, 150), 300: (400, 300), 601: (1600, 1200), 5000: (1600, 1200)}
    whole, part = (decode(file.getvalue(), "it", MediaPolicy(jpeg_side=side)) for side in (None, 300))
    assert whole.size == (1600, 1200)
    assert max(abs(a - b) for a, b in zip(whole.getpixel((9, 9)), part.getpixel((9, 9)), strict=True)) <= 2
    with pytest.raises(OptionError, match="jpeg_side=0"):
        MediaPolicy(jpeg_side=0)


@pytest.mark.parametrize("size", [(2400, 1800), (3000, 2900)])
def test_a_large_jpeg_is_decoded_into_one_piece(size: tuple[int, int]) -> None:
    """And Pillow goes on as before for whoever else uses it."""
    core: Any = Image.core
    usual, file = core.get_block_size(), io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize(size).save(file, "JPEG")
    image = decode(file.getvalue(), "it", MediaPolicy())
    assert core.get_block_size() == usual
    assert image.tobytes() == Image.open(file).tobytes()
    if hasattr(image, "__arrow_c_array__"):
        assert image.__arrow_c_array__()
        with pytest.raises(ValueError, match=r"contiguous|block"):
            Image.open(file).__arrow_c_array__()


@pytest.mark.parametrize("progressive", [False, True])
def test_the_memory_of_a_large_photograph_is_asked_for_while_it_is_decoded(progressive: bool) -> None:
    """One that has as many bytes as photographs have: the same pixels, and the same words where it was cut off."""
    size, file = (3000, 2900), io.BytesIO()
    small = np.random.default_rng(0).integers(0, 256, (290, 300, 3), np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.NEAREST).save(file, "JPEG", progressive=progressive)
    data = file.getvalue()
    assert len(data) * 64 > 4 * size[0] * size[1]
    assert decode(data, "it", MediaPolicy()).tobytes() == Image.open(file).tobytes()
    with pytest.raises(MediaError, match="truncated"):
        decode(data[: len(data) // 2], "it", MediaPolicy())
