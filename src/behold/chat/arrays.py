"""Numpy arrays and torch tensors to 8-bit PIL images. torch is never imported: a tensor is known by its methods."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from PIL import Image

from behold.errors import MediaError

_CHANNELS = (1, 2, 3, 4)
_MODES = {2: "LA", 3: "RGB", 4: "RGBA"}


def is_tensor(source: object) -> bool:
    """Whether this is a torch tensor, or something that behaves as one."""
    return all(hasattr(source, name) for name in ("detach", "cpu", "numpy", "is_floating_point"))


def tensor_to_array(source: object) -> np.ndarray[Any, Any]:
    """A tensor on any device, of any dtype, with or without a gradient, to a numpy array of the same shape."""
    tensor = cast(Any, source).detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy knows no bfloat16
    return np.asarray(tensor.numpy())


def array_to_image(array: np.ndarray[Any, Any], where: str, *, channels_first: bool = False) -> Image.Image:
    """An array (H, W), (H, W, C) or (C, H, W), C in 1 … 4, to a PIL image of mode L, LA, RGB or RGBA.

    channels_first: what to assume where both readings are possible: torch's habit, not numpy's.

    Values: uint8 as they are; bool as black and white; other integers within 0 … 255 as they are, or, where uint16
    goes beyond that, as 16-bit values; floats as 0 … 1 when none is larger than 1, else as 0 … 255.

    Raises:
        MediaError: another shape, no pixels, or values outside those ranges (such as a normalised tensor).
    """
    array = _channels_last(array, where, channels_first)
    values = _to_uint8(array, where)
    if values.shape[-1] == 1:
        return Image.fromarray(np.ascontiguousarray(values[..., 0]))
    image = Image.fromarray(np.ascontiguousarray(values))
    assert image.mode == _MODES[values.shape[-1]]
    return image


def _channels_last(array: np.ndarray[Any, Any], where: str, channels_first: bool) -> np.ndarray[Any, Any]:
    shape = tuple(array.shape)
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]  # a batch of one picture
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise MediaError(f"{where} has the shape {shape}; one picture is (H, W), (H, W, C) or (C, H, W).")
    first, last = array.shape[0] in _CHANNELS, array.shape[-1] in _CHANNELS
    if not first and not last:
        raise MediaError(f"{where} has the shape {shape}, in which no axis is 1 to 4 channels.")
    if first and (channels_first or not last):
        array = np.moveaxis(array, 0, -1)
    if array.size == 0:
        raise MediaError(f"{where} has the shape {shape}: there is nothing to see in it.")
    return array


def _to_uint8(array: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise MediaError(f"{where} has the dtype {array.dtype}; integers, floats or booleans are needed.")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and np.isfinite(high)):
        raise MediaError(
            f"{where} has values from {low:g} to {high:g}; a picture has 0 … 255, or 0 … 1 as floats. "
            "Undo the normalisation first: behold normalises by itself."
        )
    scale = 1.0
    if array.dtype.kind == "f" and high <= 1.0:
        scale = 255.0
    elif array.dtype == np.uint16 and high > 255:
        scale = 255.0 / 65535.0
    elif high > 255:
        raise MediaError(f"{where} has values up to {high:g}; a picture has 0 … 255, or 0 … 1 as floats.")
    return np.rint(array.astype(np.float64) * scale).astype(np.uint8)
