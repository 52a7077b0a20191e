"""Pictures made smaller, to the bit as Pillow makes them, in a third of its time.

Pillow's steps (src/libImaging/Resample.c): columns first, mostly, then rows; weights from the filter in double
precision, normalised to a sum of 1, rounded to 22 bits; 8-bit pixels after each direction. What is done here otherwise:
16 numbers a multiplication (csrc/resample.cpp), where the picture lies if it is in one piece, else in bands that stay
in the cache. Two threads of Python's, which sleep when there is nothing to do; more would wait for memory. What lies
on its side is turned when it is small.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from behold.device import cpu_flags
from behold.kernels import native
from behold.pixels import Turned, lent, swaps

_POINT, _LOW_BITS = 22, 11
_BAND_BYTES = 1 << 20
_FEWEST_PIXELS = 1 << 18  # smaller pictures take Pillow less than 2 ms
_MOST_TAPS = 2048  # 8 + 11 + 11 bits a sum, of 32
_MIRRORS_X = {
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
}
_MIRRORS_Y = {
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_90,
    Image.Transpose.TRANSVERSE,
}
_SUPPORT = {Image.Resampling.BILINEAR: 1.0, Image.Resampling.BICUBIC: 2.0}


def suits(image: Image.Image, size: tuple[int, int], resample: int) -> bool:
    """Whether `resize` can be used: to (width, height), RGB, both sides smaller, where Pillow lends its memory.

    Weights are equal to the bit on x86 only, where compilers do not fuse products and sums behind one's back.
    """
    (width, height), (old_width, old_height) = size, image.size
    # Pillow 13 does rows first where far more of them go than columns; earlier ones never do. Here it is columns first.
    columns_first = old_height - height <= 2 * (old_width - width)
    return (
        native.LIBRARY is not None
        and cpu_flags() >= {"sse2"}
        and image.mode == "RGB"
        and image.width * image.height >= _FEWEST_PIXELS
        and width < old_width
        and height < old_height
        and columns_first
        and resample in _SUPPORT
        and _lends(image)
        and all(_taps(old, new, resample) <= min(old, _MOST_TAPS) for new, old in zip(size, image.size, strict=True))
    )


def _lends(image: Image.Image) -> bool:
    """Whether Pillow gives the address of its pixels: since 11.2, and of a band that is in one piece."""
    core = getattr(Image, "core", None)
    if core is None or not hasattr(image, "__arrow_c_array__"):
        return False
    return bool(core.get_alignment() == 1 and max(_BAND_BYTES, 16 * image.width) <= core.get_block_size() // 2)


def resize(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """As image.resize(size, resample), where `suits` says so."""
    across, down = _Side(image.width, size[0], resample), _Side(image.height, size[1], resample)
    if not isinstance(image, Turned) or (lying := image.lying) is None:
        image.load()
        return _made_small(image, across, down)
    turn = image.turn
    across, down = replace(across, mirrored=turn in _MIRRORS_X), replace(down, mirrored=turn in _MIRRORS_Y)
    if not swaps(turn):
        return _made_small(lying, across, down)
    try:
        address, owner = lent(lying)
    except ValueError:  # Pillow's answer where it is in several pieces
        image.load()
        return resize(image, size, resample)
    small = _made_small_lying(address, across, down)
    del owner
    return small


@dataclass(frozen=True, slots=True)
class _Side:
    """How many pixels one becomes of. mirrored: they are stored last first."""

    old: int
    new: int
    resample: int
    mirrored: bool = False

    @property
    def weights(self) -> Weights:
        return (
            _mirrored(self.old, self.new, self.resample)
            if self.mirrored
            else _weights(self.old, self.new, self.resample)
        )


def _made_small(image: Image.Image, across: _Side, down: _Side) -> Image.Image:
    """Of a picture that is stored upright, or mirrored."""
    width, height, taps = across.new, down.new, across.weights[1].shape[1]
    padded = -(-width // 4) * 4
    rows = np.zeros((image.height, padded, 4), np.uint8)
    part = rows if padded == width else np.empty((image.height, width, 4), np.uint8)
    step = max(4, _BAND_BYTES // (4 * image.width) // 4 * 4)

    def narrow(address: int, top: int, bottom: int) -> None:
        _call("bh_resample_rows", address, part[top:], across, bottom - top, image.width, width, taps)

    try:
        address, owner = lent(image)
    except ValueError:
        for top in range(0, image.height, step):
            bottom = min(top + step, image.height)
            address, owner = lent(image.crop((0, top, image.width, bottom)))
            narrow(address, top, bottom)
    else:
        _in_two(lambda top, bottom: narrow(address + 4 * image.width * top, top, bottom), image.height)
    del owner
    if part is not rows:
        rows[:, :width] = part
    out = np.empty((height, padded, 4), np.uint8)

    def lower(begin: int, end: int) -> None:
        shape = padded, end - begin, height, down.weights[1].shape[1]
        _call("bh_resample_columns", rows.ctypes.data + 4 * begin, out[:, begin:], down, *shape)

    _in_two(lower, padded)
    return Image.frombytes("RGB", (width, height), out, "raw", "RGBX", 4 * padded)


def _made_small_lying(address: int, across: _Side, down: _Side) -> Image.Image:
    """Of a picture whose columns are stored as rows: (across.old, down.old, 4) bytes there."""
    columns = np.empty((across.new, down.old, 4), np.uint8)

    def narrow(begin: int, end: int) -> None:
        shape = down.old, end - begin, across.new, across.weights[1].shape[1]
        _call("bh_resample_columns", address + 4 * begin, columns[:, begin:], across, *shape)

    _in_two(narrow, down.old)
    out = np.empty((across.new, down.new, 4), np.uint8)
    shape = across.new, down.old, down.new, down.weights[1].shape[1]
    _call("bh_resample_rows", columns.ctypes.data, out, down, *shape)
    upright = np.ascontiguousarray(out.transpose(1, 0, 2))
    return Image.frombytes("RGB", (across.new, down.new), upright, "raw", "RGBX", 4 * across.new)


def _call(name: str, address: int, to: NDArray[np.uint8], side: _Side, *shape: int) -> None:
    starts, high, low = side.weights
    getattr(native.LIBRARY, name)(
        address, to.ctypes.data, starts.ctypes.data, high.ctypes.data, low.ctypes.data, *shape
    )


def _in_two(work: Callable[[int, int], None], rows: int) -> None:
    """work(begin, end) over the rows, at least four at a time, by two threads where two may work."""
    middle = rows // 8 * 4 if torch.get_num_threads() > 1 else 0
    if not middle:
        work(0, rows)
        return
    helper = threading.Thread(target=work, args=(0, middle))
    helper.start()
    work(middle, rows)
    helper.join()


Weights = tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.int16]]


def _taps(old: int, new: int, resample: int) -> int:
    """Pixels that one is made of, at most, rounded up to what the kernel reads at once."""
    support = _SUPPORT[Image.Resampling(resample)] * old / new
    return -(-(int(np.ceil(support)) * 2 + 1) // 8) * 8


@functools.lru_cache(maxsize=32)
def _weights(old: int, new: int, resample: int) -> Weights:
    """For each of `new` pixels where its neighbours start, and their weights' high and low halves (new, taps)."""
    scale = old / new
    support, taps = _SUPPORT[Image.Resampling(resample)] * scale, _taps(old, new, resample)
    centers = (np.arange(new) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + support + 0.5).astype(np.int64), old)
    starts = np.minimum(first, old - taps)
    places = starts[:, None] + np.arange(taps)
    distances = (places - centers[:, None] + 0.5) * (1.0 / scale)
    inside = (places >= first[:, None]) & (places < last[:, None])
    weights = np.where(inside, _filter(np.abs(distances), resample), 0.0)
    total = np.zeros(new)
    for tap in range(taps):  # one after another, as the sum's last bit depends on it
        total += weights[:, tap]
    whole = np.trunc(weights / total[:, None] * (1 << _POINT) + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
    high = whole >> _LOW_BITS
    return starts.astype(np.int32), high.astype(np.int16), (whole - (high << _LOW_BITS)).astype(np.int16)


@functools.lru_cache(maxsize=32)
def _mirrored(old: int, new: int, resample: int) -> Weights:
    """`_weights` where the old pixels are stored last first: the same sums."""
    starts, high, low = _weights(old, new, resample)
    return old - high.shape[1] - starts, *(np.ascontiguousarray(half[:, ::-1]) for half in (high, low))


def _filter(x: NDArray[np.float64], resample: int) -> NDArray[np.float64]:
    """Of distances in units of the wider pixel, none negative; operations in Pillow's order."""
    if resample == Image.Resampling.BILINEAR:
        return np.where(x < 1.0, 1.0 - x, 0.0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
