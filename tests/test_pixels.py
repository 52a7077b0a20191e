"""A picture that is turned when somebody looks is, to all who look, the turned picture."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from behold.pixels import Turned

LOOKS: dict[str, Callable[[Image.Image], Any]] = {
    "numpy": np.asarray,
    "bytes": lambda image: image.tobytes(),
    "pixel": lambda image: image.getpixel((1, 4)),
    "crop": lambda image: image.crop((1, 1, 3, 4)).tobytes(),
    "resize": lambda image: image.resize((2, 2)).tobytes(),
    "convert": lambda image: image.convert("L").tobytes(),
    "copy": lambda image: copy.copy(image).tobytes(),
    "deepcopy": lambda image: copy.deepcopy(image).tobytes(),
    "pickle": lambda image: pickle.loads(pickle.dumps(image)).tobytes(),
    "paste": lambda image: Image.new("RGB", (9, 9)).paste(image, (1, 2)),
    "turned again": lambda image: image.transpose(Image.Transpose.ROTATE_90).tobytes(),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=list(LOOKS))
@pytest.mark.parametrize("turn", Image.Transpose)
def test_it_looks_turned(turn: Image.Transpose, look: Callable[[Image.Image], Any]) -> None:
    lying = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8).repeat(2, axis=1))
    upright, turned = lying.transpose(turn), Turned(lying, turn)
    assert (turned.size, turned.mode) == (upright.size, upright.mode)
    assert np.array_equal(look(turned), look(upright))
