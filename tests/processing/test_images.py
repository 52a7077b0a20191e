"""Sizes, crops, settings and normalisation: the arithmetic that needs no reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from behold.errors import MediaError, OptionError, UnsupportedModelError
from behold.processing import grids
from behold.processing.images import center_crop, digest, normalize, pad_to_square, resize
from behold.processing.settings import DEFAULTS, read_settings
from tests import toys

SIDES = st.integers(1, 5000)
KINDS = tuple(DEFAULTS)


# --- grids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "square", "rule"),
    [
        (5, True, {"height": 5, "width": 5}),
        (5, False, {"shortest_edge": 5}),
        ([5, 6], False, {"height": 5, "width": 6}),
        ({"shortest_edge": 5, "longest_edge": None}, True, {"shortest_edge": 5}),
        ({"longest_edge": 9, "shortest_edge": 5}, True, {"shortest_edge": 5, "longest_edge": 9}),
    ],
)
def test_spellings_of_a_size(value: Any, square: bool, rule: dict[str, int]) -> None:
    assert grids.size_rule(value, "size", square=square) == rule


@pytest.mark.parametrize(
    "value", [None, 0, -3, True, "5", [1, 2, 3], {}, {"height": 3}, {"longest_edge": 9}, {"width": 0, "height": 1}]
)
def test_sizes_that_are_none(value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="size is"):
        grids.size_rule(value, "size", square=True)


def test_target_sizes() -> None:
    assert grids.target_size({"shortest_edge": 336}, (480, 640)) == (336, 448)
    assert grids.target_size({"shortest_edge": 336}, (640, 480)) == (448, 336)
    assert grids.target_size({"height": 3, "width": 4}, (640, 480)) == (3, 4)
    assert grids.target_size({"max_height": 50, "max_width": 50}, (100, 200)) == (25, 50)
    assert grids.target_size({"shortest_edge": 100, "longest_edge": 150}, (100, 400)) == (38, 150)


def test_idefics2_sizes_of_the_published_tests() -> None:
    rule = {"shortest_edge": 378, "longest_edge": 980}
    assert grids.clamped_size(rule, (400, 600)) == (400, 600)
    assert grids.clamped_size(rule, (100, 2000)) == (378, 980)
    assert grids.clamped_size(rule, (2000, 100)) == (980, 378)
    assert grids.clamped_size(rule, (1111, 1667)) == (653, 980)


@given(SIDES, SIDES)
def test_clamped_sizes_stay_within_their_bounds(height: int, width: int) -> None:
    sides = grids.clamped_size({"shortest_edge": 378, "longest_edge": 980}, (height, width))
    assert all(378 <= side <= 980 for side in sides)


@given(SIDES, SIDES)
def test_quarters_tile_the_picture(height: int, width: int) -> None:
    *parts, whole = grids.quarters((height, width))
    assert whole == (0, 0, width, height)
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in parts) == height * width


# --- images ------------------------------------------------------------------------------------------------------


def test_enormous_results_are_refused() -> None:
    with pytest.raises(MediaError, match="too long and narrow"):
        resize(Image.new("RGB", (100_000, 1)), (336, 33_600_000), 3)
    with pytest.raises(MediaError, match="would become"):
        resize(Image.new("RGB", (3, 3)), (0, 5), 3)


def test_the_middle_of_a_picture() -> None:
    image = Image.fromarray(np.arange(75, dtype=np.uint8).reshape(5, 5, 3))
    assert np.array_equal(np.asarray(center_crop(image, (3, 2))), np.asarray(image)[1:4, 1:3])
    grown = np.asarray(center_crop(image, (8, 7)))
    assert np.array_equal(grown[2:7, 1:6], np.asarray(image))
    assert grown[:2].max() == grown[7:].max() == grown[:, 6:].max() == 0


def test_a_square() -> None:
    with pytest.raises(MediaError, match="put on a square"):
        pad_to_square(Image.new("RGB", (16_001, 1)), (1, 2, 3))
    square = np.asarray(pad_to_square(Image.new("RGB", (5, 2), (9, 9, 9)), (1, 2, 3)))
    assert square.shape == (5, 5, 3)
    assert (square[1:3] == 9).all() and (square[0] == [1, 2, 3]).all() and (square[3:] == [1, 2, 3]).all()


def test_normalising() -> None:
    image = Image.fromarray(np.array([[[0, 128, 255]]], np.uint8))
    values = normalize(image, rescale_factor=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))
    assert values.shape == (3, 1, 1) and values.dtype == np.float32
    assert np.allclose(values[:, 0, 0], [-1.0, (128 / 255 - 0.5) / 0.25, 0.5], atol=1e-6)
    raw = normalize(image, rescale_factor=None, mean=None, std=None)
    assert raw[:, 0, 0].tolist() == [0, 128, 255]


def test_digests_tell_everything_apart() -> None:
    pixels = normalize(toys.picture(8, 6), rescale_factor=1 / 255, mean=None, std=None)
    other = pixels.copy()
    other[0, 0, 0] += 1e-3
    names = {digest(pixels, "a"), digest(other, "a"), digest(pixels, "b"), digest(pixels.reshape(3, 8, 6), "a")}
    assert len(names) == 4
    assert digest(pixels.copy(), "a") == digest(np.asfortranarray(pixels), "a") == digest(pixels, "a")


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
        ({"image_processor_type": "CLIPImageProcessorFast"}, "CLIPImageProcessor"),
        ({"image_processor_type": "SiglipImageProcessorPil"}, "SiglipImageProcessor"),
        ({"feature_extractor_type": "CLIPFeatureExtractor"}, "CLIPImageProcessor"),
        ({}, "Idefics2ImageProcessor"),
        ({"image_processor_type": None}, "Idefics2ImageProcessor"),
    ],
)
def test_names_of_image_processors(spelling: dict[str, Any], kind: str) -> None:
    assert read_settings(spelling, default_kind="Idefics2ImageProcessor", supported=KINDS).kind == kind


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"image_processor_type": "PixtralImageProcessor"}, "'PixtralImageProcessor'; for this model CLIP"),
        ({"size": {"longest_edge": 3}}, "longest_edge"),
        ({"crop_size": {"shortest_edge": 3}}, "height and a width"),
        ({"image_mean": [0.5]}, "three values"),
        ({"resample": 17}, "0 to 5"),
        ({"pad_size": {"height": 3, "width": 3}}, "fixed size"),
    ],
)
def test_settings_that_are_not_supported(given: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedModelError, match=word):
        read_settings({"image_processor_type": "CLIPImageProcessor", **given}, default_kind="", supported=KINDS)


def test_changes_for_one_call() -> None:
    settings = read_settings({}, default_kind="Idefics2ImageProcessor", supported=KINDS)
    assert settings.changed(do_image_splitting=True, size=None).do_image_splitting
    assert settings.changed(size={"shortest_edge": 3, "longest_edge": 4}).size["longest_edge"] == 4
    with pytest.raises(OptionError, match="'do_splitting' is no setting"):
        settings.changed(do_splitting=True)


def test_one_mean_for_all_channels() -> None:
    settings = read_settings({"image_mean": 0.25}, default_kind="CLIPImageProcessor", supported=KINDS)
    assert settings.image_mean == (0.25, 0.25, 0.25)
