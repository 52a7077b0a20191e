"""Pictures made smaller by ours and by Pillow: the same bytes, odd sizes included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from behold.kernels import native, resample
from behold.pixels import Turned

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
pytestmark = pytest.mark.skipif(not hasattr(Image.Image, "__arrow_c_array__"), reason="this Pillow lends no memory")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Bytes at random, half of them black or white: sums that must be cut at both ends."""
    bytes_ = np.random.default_rng(seed).integers(-128, 384, (height, width, 3)).clip(0, 255)
    return Image.fromarray(bytes_.astype(np.uint8))


def equal(image: Image.Image, size: tuple[int, int], kind: int) -> bool:
    ours, pillows = resample.resize(image, size, kind), image.resize(size, Image.Resampling(kind))
    return ours.mode == "RGB" and ours.size == size and ours.tobytes() == pillows.tobytes()


@pytest.fixture(params=["in one piece", "in pieces", "by two threads"])
def small_ones_too(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(resample, "_FEWEST_PIXELS", 1)
    monkeypatch.setattr(resample, "_BAND_BYTES", 1 << 14)
    core: Any = Image.core
    usual, threads = core.get_block_size(), torch.get_num_threads()
    if request.param == "in pieces":
        core.set_block_size(1 << 16)
    torch.set_num_threads(2 if request.param == "by two threads" else 1)
    yield
    core.set_block_size(usual)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("library", "small_ones_too")
@pytest.mark.parametrize("kind", [BILINEAR, BICUBIC])
@pytest.mark.parametrize(
    ("old", "new"), [((400, 300), (38, 38)), ((301, 403), (48, 63)), ((97, 211), (96, 210)), ((640, 333), (50, 1))]
)
def test_equal_to_pillow(old: tuple[int, int], new: tuple[int, int], kind: int) -> None:
    image = noise(*old)
    assert resample.suits(image, new, kind) or new == (50, 1)
    assert not resample.suits(image, new, kind) or equal(image, new, kind)


@pytest.mark.usefixtures("library", "small_ones_too")
def test_any_sizes_are_equal_to_pillow() -> None:
    sides, smaller = st.integers(1, 260), st.integers(1, 60)
    seen = []

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(sides, sides, smaller, smaller, st.sampled_from([BILINEAR, BICUBIC]))
    def run(width: int, height: int, new_width: int, new_height: int, kind: int) -> None:
        image, new = noise(width, height, width), (new_width, new_height)
        if resample.suits(image, new, kind):
            seen.append(new)
            assert equal(image, new, kind)

    run()
    assert len(seen) > 5


@pytest.mark.usefixtures("library", "small_ones_too")
@pytest.mark.parametrize("turn", Image.Transpose)
@pytest.mark.parametrize(("old", "new"), [((400, 301), (38, 45)), ((203, 130), (67, 101)), ((97, 97), (9, 30))])
def test_what_lies_is_turned_when_it_is_small(
    old: tuple[int, int], new: tuple[int, int], turn: Image.Transpose
) -> None:
    lying = noise(*old)
    upright, turned = lying.transpose(turn), Turned(lying, turn)
    suited = resample.suits(turned, new, BICUBIC)
    assert suited == resample.suits(upright, new, BICUBIC)
    if suited:
        assert resample.resize(turned, new, BICUBIC).tobytes() == upright.resize(new, BICUBIC).tobytes()
    assert turned.size == upright.size and turned.tobytes() == upright.tobytes() and turned.lying is None


@pytest.mark.usefixtures("library")
def test_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(1600, 1203)
    assert resample.suits(image, (384, 384), BICUBIC) and equal(image, (384, 384), BICUBIC)


def test_where_it_does_not_suit(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    image = noise(700, 500)
    assert resample.suits(image, (300, 300), BICUBIC)
    for size in ((700, 300), (300, 500), (800, 300), (690, 100)):
        assert not resample.suits(image, size, BICUBIC), size
    assert not resample.suits(image, (300, 300), Image.Resampling.LANCZOS)
    assert not resample.suits(image.convert("L"), (300, 300), BICUBIC)
    assert not resample.suits(image.resize((100, 100)), (30, 30), BICUBIC)
    monkeypatch.setattr(native, "LIBRARY", None)
    assert not resample.suits(image, (300, 300), BICUBIC)
