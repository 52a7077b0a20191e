"""Layouts: how many places a picture takes, and tensors packed and unpacked again."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from behold.checkpoint.files import CheckpointFiles
from behold.errors import ChatError, UnsupportedModelError
from behold.processing.layouts import NativeSizeLayout, WholeImageLayout
from behold.processing.settings import DEFAULTS, read_settings
from behold.types import ImageInput
from tests import toys


def whole(*, additional: int = 0, drops: bool = False) -> WholeImageLayout:
    settings = read_settings(
        {"size": 24, "crop_size": 24}, default_kind="CLIPImageProcessor", supported=tuple(DEFAULTS)
    )
    return WholeImageLayout(settings, "<image>", 7, 6, additional, drops)


def native(**given: Any) -> NativeSizeLayout:
    given = {"size": {"shortest_edge": 20, "longest_edge": 56}, **given}
    settings = read_settings(given, default_kind="Idefics2ImageProcessor", supported=tuple(DEFAULTS))
    return NativeSizeLayout(settings, "<image>", 7, "<fake>", 3)


def flat(inputs: list[list[ImageInput]]) -> list[ImageInput]:
    return [each for picture in inputs for each in picture]


def same(ours: list[ImageInput], others: list[ImageInput]) -> bool:
    return [each.digest for each in ours] == [each.digest for each in others] and all(
        np.array_equal(a.pixels, b.pixels) and a.n_tokens == b.n_tokens for a, b in zip(ours, others, strict=True)
    )


def test_counts_of_a_whole_image() -> None:
    for layout, count in ((whole(), 16), (whole(additional=1), 17), (whole(additional=1, drops=True), 16)):
        (inputs,) = layout.prepare([toys.picture(50, 30)])
        assert [each.n_tokens for each in inputs] == [count]
        assert layout.expand(inputs) == "<image>" * count
        assert layout.finish("a <image>") == "a <image>"


def test_digests_depend_on_pixels_and_settings() -> None:
    one, two = toys.picture(50, 30, 1), toys.picture(50, 30, 2)
    layout = whole()
    digests = [each.digest for each in flat(layout.prepare([one, two, one.copy()]))]
    assert digests[0] == digests[2] != digests[1]
    assert flat(layout.changed(do_normalize=False).prepare([one]))[0].digest != digests[0]


def test_packing_whole_images_and_back() -> None:
    layout = whole()
    rows = [flat(layout.prepare([toys.picture(9, 9, n) for n in range(count)])) for count in (2, 0, 1)]
    batch = layout.pack(rows)
    assert batch["pixel_values"].shape == (3, 3, 24, 24)
    again = layout.unpack(batch, [32, 0, 16])
    assert all(same(a, b) for a, b in zip(rows, again, strict=True))
    assert layout.pack([[], []]) == {} and layout.unpack({}, [0, 0]) == [[], []]
    assert (
        layout.unpack({"pixel_values": batch["pixel_values"].to(torch.bfloat16)}, [48])[0][0].pixels.dtype == np.float32
    )


@pytest.mark.parametrize("counts", [[16], [48, 16], [20, 28], [0, 0]])
def test_whole_images_and_places_that_do_not_match(counts: list[int]) -> None:
    layout = whole()
    batch = layout.pack([flat(layout.prepare([toys.picture(9, 9, n) for n in range(3)]))])
    with pytest.raises(ChatError, match="3 pictures of 16 tokens"):
        layout.unpack(batch, counts)
    with pytest.raises(ChatError, match="0 pictures"):
        layout.unpack({}, [16])


def test_a_native_size_takes_the_same_places_whatever_its_size() -> None:
    layout = native()
    inputs = layout.prepare([toys.picture(50, 30), toys.picture(20, 20)])
    assert [[each.n_tokens for each in picture] for picture in inputs] == [[3], [3]]
    assert layout.expand(inputs[0]) == "<fake><image><image><image><fake>"
    assert layout.finish("a<fake><fake>b<fake> c<fake><x>") == "a<fake> b<fake> c<fake><x>"


def test_splitting() -> None:
    layout = native(do_image_splitting=True)
    (inputs,) = layout.prepare([toys.picture(50, 30)])
    assert len(inputs) == 5
    assert layout.finish(layout.expand(inputs)) == "<fake><image><image><image>" * 5 + "<fake>"
    assert inputs[-1].pixels.shape == (3, 30, 50) and inputs[0].pixels.shape == (3, 20, 25)
    assert len(layout.changed(do_image_splitting=False).prepare([toys.picture(50, 30)])[0]) == 1


@pytest.mark.parametrize("splitting", [False, True])
def test_detail_is_a_budget(splitting: bool) -> None:
    """low: the whole picture at half the longest side, high: split, auto: as the settings say; the rest is equal."""
    layout = native(do_image_splitting=splitting)
    picture = toys.picture(80, 60)
    low, auto, high = layout.prepare([picture] * 3, ["low", "auto", "high"])
    assert [len(inputs) for inputs in (low, auto, high)] == [1, 5 if splitting else 1, 5]
    assert low[0].pixels.shape == (3, 21, 28) and high[-1].pixels.shape == (3, 42, 56)
    assert same([auto[-1]], [high[-1]])
    assert same(high if splitting else high[-1:], auto) and same(flat(layout.prepare([picture])), auto)
    assert low[0].digest not in {each.digest for each in (*auto, *high)}
    with pytest.raises(ValueError, match="shorter"):
        layout.prepare([picture] * 2, ["low"])


def test_low_detail_stays_within_the_sizes_allowed() -> None:
    tight = native(size={"shortest_edge": 40, "longest_edge": 56})
    ((low,),) = tight.prepare([toys.picture(80, 60)], ["low"])
    assert low.pixels.shape == (3, 40, 40)
    fixed = native(size={"height": 28, "width": 35})
    ((low,), (auto,)) = fixed.prepare([toys.picture(80, 60)] * 2, ["low", "auto"])
    assert low.pixels.shape == (3, 28, 35) and same([low], [auto])


def test_a_whole_image_costs_the_same_at_every_detail() -> None:
    low, auto, high = whole().prepare([toys.picture(50, 30)] * 3, ["low", "auto", "high"])
    assert same(low, auto) and same(high, auto)


def test_a_picture_is_the_same_input_whatever_stands_beside_it() -> None:
    layout = native()
    ((alone,),) = layout.prepare([toys.picture(50, 30)])
    (first,), (second,) = layout.prepare([toys.picture(50, 30), toys.picture(20, 50)])
    assert alone.pixels.shape == (3, 30, 50) and second.pixels.shape == (3, 50, 20)
    assert alone.digest == first.digest


def test_packing_native_sizes_and_back() -> None:
    layout = native(do_image_splitting=True)
    rows = [flat(layout.prepare(pictures)) for pictures in ([toys.picture(50, 30)], [], [toys.picture(33, 56, 2)] * 2)]
    batch = layout.pack(rows)
    assert batch["pixel_values"].shape[:3] == (3, 10, 3)
    again = layout.unpack(batch, [15, 0, 30])
    assert [len(row) for row in again] == [5, 0, 10]
    assert again[2][0].digest == again[2][5].digest != again[2][4].digest
    assert all(same(one, other) for one, other in zip(again, rows, strict=True))
    assert layout.pack([[], []]) == {} and layout.unpack({}, [0, 0]) == [[], []]


def test_a_black_picture_is_a_picture() -> None:
    layout = native(do_normalize=False)
    row = flat(layout.prepare([Image.new("RGB", (30, 30)), toys.picture(30, 30)]))
    (again,) = layout.unpack(layout.pack([row]), [6])
    assert same(again, row)


def test_tensors_without_a_mask_are_wholly_real() -> None:
    layout = native()
    batch = {"pixel_values": torch.rand(1, 2, 3, 30, 31)}
    (row,) = layout.unpack(batch, [6])
    assert [each.pixels.shape for each in row] == [(3, 30, 31), (3, 30, 31)]


@pytest.mark.parametrize("counts", [[3, 3], [9, 3], [6, 6], [6, 4], [6], [6, 3, 3]])
def test_native_sizes_and_places_that_do_not_match(counts: list[int]) -> None:
    layout = native()
    rows = [flat(layout.prepare([toys.picture(30, 30, n) for n in range(count)])) for count in (2, 1)]
    batch = layout.pack(rows)
    assert len(layout.unpack(batch, [6, 3])) == 2
    with pytest.raises(ChatError, match="pixel_values"):
        layout.unpack(batch, counts)


def test_reading_from_files(tmp_path: Any) -> None:
    folder = toys.copy(toys.checkpoint("llava-clip-llama", style="published"), tmp_path / "copy")
    arguments: dict[str, Any] = {
        "image_token_id": 7,
        "patch_size": 12,
        "n_class_tokens": 1,
        "select_strategy": "default",
    }
    stated = WholeImageLayout.read(CheckpointFiles.read(folder), **arguments)
    assert (stated.patch_size, stated.n_additional_tokens, stated.drops_class_token) == (6, 1, True)
    (folder / "processor_config.json").write_text('{"patch_size": null, "vision_feature_select_strategy": null}')
    silent = WholeImageLayout.read(CheckpointFiles.read(folder), **{**arguments, "select_strategy": "full"})
    assert (silent.patch_size, silent.n_additional_tokens, silent.drops_class_token) == (12, 1, False)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Idefics2ImageProcessor"}')
    with pytest.raises(UnsupportedModelError, match="Idefics2ImageProcessor"):
        WholeImageLayout.read(CheckpointFiles.read(folder), **arguments)


def test_pictures_are_prepared_without_torch() -> None:
    code = (
        "import sys; import behold.processing.processor, behold.processing.layouts; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
