"""Every form of picture, every mode and format, and every way a picture can be bad."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from behold.chat.media import MediaPolicy, load_image
from behold.errors import MediaError, OptionError
from tests.chat.samples import FORMATS, PNG, RED, WHITE, encoded, quadrants, same, see_through

# --- forms -------------------------------------------------------------------------------------------------------


def path_forms(folder: Path) -> list[object]:
    path = folder / "a picture.dat"
    path.write_bytes(PNG)
    return [path, str(path), f"  {path}\n"]


def test_paths_are_read_by_content_whatever_their_name(tmp_path: Path) -> None:
    for form in path_forms(tmp_path):
        assert same(load_image(form)), form


def test_a_path_like_object(tmp_path: Path) -> None:
    path_forms(tmp_path)

    class Like:
        def __fspath__(self) -> str:
            return str(tmp_path / "a picture.dat")

    assert same(load_image(Like()))


@pytest.mark.parametrize(
    "form",
    [
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        base64.b64encode(PNG).decode(),
        base64.b64encode(PNG).decode().rstrip("="),
        base64.urlsafe_b64encode(PNG).decode(),
        base64.encodebytes(PNG).decode(),
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "data:image/jpeg;base64," + base64.b64encode(PNG).decode(),  # the stated type is not believed
        "DATA:;BASE64," + base64.b64encode(PNG).decode().replace("=", "%3D"),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
        quadrants(),
        np.asarray(quadrants()),
        np.asarray(quadrants()).astype(np.float32) / 255,
        np.asarray(quadrants()).astype(np.float64),
        np.asarray(quadrants()).astype(np.int64),
        np.asarray(quadrants()).astype(np.uint16) * 257,
        np.moveaxis(np.asarray(quadrants()), -1, 0),
        np.asarray(quadrants())[None],
        torch.from_numpy(np.array(quadrants())).permute(2, 0, 1),
        (torch.from_numpy(np.array(quadrants())).permute(2, 0, 1) / 255).to(torch.bfloat16),
        (torch.from_numpy(np.array(quadrants())).permute(2, 0, 1) / 255).requires_grad_(),
    ],
    ids=lambda form: f"{type(form).__name__}-{getattr(form, 'dtype', '')!s}",
)
def test_forms_in_memory(form: object) -> None:
    assert same(load_image(form))


def test_file_objects_are_read_from_their_start() -> None:
    file = io.BytesIO()
    quadrants().save(file, "PNG")  # leaves the position at the end
    assert same(load_image(file))


def test_a_stream_that_gives_a_few_bytes_at_a_time_and_cannot_seek() -> None:
    class Slow(io.RawIOBase):
        rest = PNG

        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return False

        def readinto(self, buffer: Any) -> int:
            piece, self.rest = self.rest[:7], self.rest[7:]
            buffer[: len(piece)] = piece
            return len(piece)

    assert same(load_image(Slow()))


def test_the_result_is_a_copy() -> None:
    given = quadrants()
    load_image(given).paste(RED, (0, 0, 6, 4))
    assert same(given)


def test_array_shapes() -> None:
    grey = np.arange(30, dtype=np.uint8).reshape(6, 5) * 8
    expected = Image.fromarray(grey).convert("RGB")
    for form in (grey, grey[..., None], grey[None], grey[None, ..., None]):
        assert same(load_image(form), expected), form.shape
    boolean = load_image(grey > 100)
    assert boolean.getpixel((4, 5)) == WHITE and boolean.getpixel((0, 0)) == (0, 0, 0)
    alpha = np.dstack([grey, np.tile(np.array([255, 0, 0, 0, 0], np.uint8), (6, 1))])
    assert load_image(alpha).getpixel((1, 1)) == WHITE
    assert load_image(torch.zeros(8, 9, 3, dtype=torch.uint8)).size == (9, 8)


def test_where_both_readings_fit_numpy_is_channels_last_and_torch_channels_first() -> None:
    values = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert load_image(values).size == (5, 3)
    assert load_image(torch.from_numpy(values)).size == (3, 5)


def test_floats_that_are_rounded_come_back_exactly() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    again = load_image(values.astype(np.float32) / np.float32(255))
    assert np.array_equal(np.asarray(again)[..., 0], values)


# --- bad pictures ------------------------------------------------------------------------------------------------


def refuse(form: object, *words: str, policy: MediaPolicy | None = None) -> None:
    with pytest.raises(MediaError) as caught:
        load_image(form, policy=policy)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("form", "word"),
    [
        (b"", "empty"),
        (b"hello world, no picture", "not a picture"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"  <svg xmlns=", "SVG"),
        (b"\x00\x00\x00\x20ftypheic....", "HEIC"),
        (PNG[:20], "header"),
        (PNG[:60], "truncated"),
        (PNG[:8] + b"\x00" * 40, "header"),
        ("no such file.png", "no such file.png"),
        ("file:///etc/passwd", "http and https"),
        ("FILE:/etc/passwd", "http and https"),
        ("ftp://host/a.png", "ftp"),
        ("gopher://host/a.png", "gopher"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,!!!", "base64"),
        ("data:image/png;base64,", "empty"),
        ("A" * 40 + "!", "no file"),
        ("A" * 41, "base64"),
        ("A" * 40, "not a picture"),
        ("", "no file"),
        ("http://", "host"),
        (None, "NoneType"),
        (3, "int"),
        ([PNG], "list"),
        (io.StringIO("text"), "mode 'rb'"),
        (np.zeros((0, 3, 3), np.uint8), "nothing to see"),
        (np.zeros((5, 5, 5, 5), np.uint8), "shape"),
        (np.zeros((5, 5, 5), np.uint8), "shape"),
        (np.zeros(5, np.uint8), "shape"),
        (np.full((2, 2), -1.0), "normalisation"),
        (np.full((2, 2), 300), "300"),
        (np.full((2, 2), np.nan), "normalisation"),
        (np.full((2, 2), np.inf), "normalisation"),
        (np.full((2, 2), 1j), "dtype"),
        (np.full((2, 2), "x"), "dtype"),
        (torch.zeros(2, 3, 4, 4), "shape"),
        (Image.new("RGB", (0, 5)), "nothing to see"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str | bytes) else type(value).__name__,
)
def test_bad_pictures_say_what_was_found(form: object, word: str) -> None:
    refuse(form, word)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files_of_every_format(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for part in (0.1, 0.5, 0.8):
        refuse(data[: int(len(data) * part)])


def test_folders_and_unreadable_files(tmp_path: Path) -> None:
    refuse(tmp_path, "folder")
    refuse(str(tmp_path), "folder")
    refuse(tmp_path / "gone.png", "no file")
    refuse(tmp_path / "nul\0l", "cannot be read")
    empty = tmp_path / "empty.png"
    empty.touch()
    refuse(empty, "empty")


def test_a_file_object_that_fails() -> None:
    class Broken:
        def read(self, size: int = -1) -> bytes:
            raise ConnectionResetError("gone")

    refuse(Broken(), "ConnectionResetError")


# --- limits ------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing: a decompression bomb's fuse."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + ihdr + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_pixels_are_counted_before_decoding() -> None:
    refuse(png_header(100_000, 100_000), "100000 × 100000", "89478485")
    refuse(png_header(12_000, 12_000), "12000 × 12000")  # Pillow only warns here, and warnings are errors in this test
    refuse(quadrants(), "at most 23 pixels", policy=MediaPolicy(max_pixels=23))
    assert same(load_image(quadrants(), policy=MediaPolicy(max_pixels=24)))
    refuse(np.zeros((5, 5), np.uint8), "at most 24 pixels", policy=MediaPolicy(max_pixels=24))


def test_bytes_are_counted_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    tight = MediaPolicy(max_bytes=len(PNG) - 1)
    text = base64.b64encode(PNG * 3).decode()
    for form in (PNG, path, str(path), io.BytesIO(PNG), text, f"data:;base64,{text}", "data:," + "%00" * 4 * len(PNG)):
        refuse(form, str(len(PNG) - 1), policy=tight)
    for form in (PNG, path, io.BytesIO(PNG), base64.b64encode(PNG).decode()):
        assert same(load_image(form, policy=MediaPolicy(max_bytes=len(PNG))))


def test_a_file_without_an_end_is_cut_off() -> None:
    if not os.path.exists("/dev/zero"):
        pytest.skip("no /dev/zero here")
    refuse("/dev/zero", "at most 1000 are read", policy=MediaPolicy(max_bytes=1000))


def test_policies_can_forbid_paths_and_urls(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    closed = MediaPolicy(allow_paths=False, allow_urls=False)
    refuse(path, "may not be read", policy=closed)
    refuse(str(path), "neither", policy=closed)
    refuse("https://example.org/a.png", "not allowed", policy=closed)
    assert same(load_image(PNG, policy=closed))


def test_policies_are_checked() -> None:
    for wrong in ({"max_bytes": 0}, {"max_pixels": -1}, {"timeout_s": 0}, {"max_redirects": -1}):
        with pytest.raises(OptionError):
            MediaPolicy(**wrong)  # type: ignore[arg-type]


# --- whatever comes ----------------------------------------------------------------------------------------------


def damaged() -> st.SearchStrategy[bytes]:
    files = [encoded(quadrants().resize((24, 16)), kind) for kind in FORMATS]
    files.append(encoded(see_through("RGBA"), "GIF", save_all=True, append_images=[quadrants()]))

    def harm(picture: bytes, at: int, by: bytes, keep: int) -> bytes:
        at %= len(picture)
        return (picture[:at] + by + picture[at + len(by) :])[: max(keep, 1) % (len(picture) + 1)]

    return st.builds(harm, st.sampled_from(files), st.integers(0, 4000), st.binary(max_size=4), st.integers(0, 4000))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(damaged(), st.binary(max_size=200)))
@example(b"GIF89a" + b"\xff" * 20)
@example(b"II*\x00" + b"\xff" * 30)
@example(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
def test_damaged_bytes_give_a_picture_or_a_media_error(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged TIFF or EXIF block may make Pillow warn
        with contextlib.suppress(MediaError):
            assert load_image(data).mode == "RGB"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
@example("\0")
@example("http://[::1")
@example("a" * 5000)
@example("data:;base64,\ud800")
def test_any_text_gives_a_picture_or_a_media_error(text: str) -> None:
    with contextlib.suppress(MediaError):
        load_image(text, policy=MediaPolicy(allow_urls=False))
