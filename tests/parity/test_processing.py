"""Preprocessing beside transformers: ids and shapes exactly, pixels within 1e-5."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from behold.chat.literals import RenderedPrompt
from behold.chat.messages import attach_images, parse_messages
from behold.processing.images import size_of
from behold.processing.layouts import NativeSizeLayout, WholeImageLayout
from behold.processing.processor import Processor
from behold.processing.settings import DEFAULTS, read_settings
from tests import toys
from tests.processing.opening import open_processor

CHECKPOINTS = tuple(itertools.product(toys.TOYS, ("saved", "published")))
SHARED = Path(__file__).parents[3] / "shared" / "checkpoints"
# Small and large, both orientations, odd sides, one pixel, exactly the target.
SIZES = ((40, 30), (30, 41), (224, 224), (7, 90), (301, 23), (1, 1), (150, 151))


@functools.cache
def pair(name: str, style: Any) -> tuple[Processor, Any]:
    """(ours, theirs) from the same folder."""
    from transformers import AutoProcessor

    folder = toys.checkpoint(name, style=style)
    return open_processor(folder), AutoProcessor.from_pretrained(folder)


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    return [toys.picture(width, height, seed) for seed, (width, height) in enumerate(sizes)]


def conversation(n_images: int) -> list[dict[str, Any]]:
    """Two turns with `n_images` places spread over both, text in several scripts, and a started answer between."""
    first, second = n_images - n_images // 2, n_images // 2
    place, text = {"type": "image"}, {"type": "text"}
    return [
        {"role": "user", "content": [*[place] * first, {**text, "text": "What do we see? naïve 日本語 🙂\n"}]},
        {"role": "assistant", "content": [{**text, "text": "A red square."}]},
        {"role": "user", "content": [{**text, "text": "And here?"}, *[place] * second]},
    ]


def theirs_of(processor: Any, text: list[str], images: list[list[Image.Image]]) -> dict[str, Any]:
    given = images if any(images) else None
    if given and "Llava" in type(processor).__name__:
        given = [image for row in given for image in row]  # type: ignore[misc]
    return dict(processor(text=text, images=given, return_tensors="np", padding=True))


def check_tensors(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert set(ours) == set(theirs) - {"input_ids", "attention_mask"}
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape, name
        assert np.abs(tensor.numpy() - theirs[name]).max() <= 1e-5, name


@pytest.mark.parametrize(("name", "style"), CHECKPOINTS)
@pytest.mark.parametrize("n_images", [0, 1, 3])
def test_conversations(name: str, style: str, n_images: int) -> None:
    ours, theirs = pair(name, style)
    images = pictures(*SIZES[:n_images])
    raw = conversation(n_images)
    text = theirs.apply_chat_template(raw, add_generation_prompt=True)
    expected = theirs_of(theirs, [text], [images])
    prompt = ours.chat(attach_images(parse_messages(raw), images))
    assert list(prompt.ids) == expected["input_ids"][0].tolist()
    assert ours.prompt(text, images).ids == prompt.ids
    check_tensors(ours.layout.pack([prompt.images]), expected)


@pytest.mark.parametrize("name", ["llava-siglip-qwen2", "llava-clip-llama", "idefics2", "idefics2-split"])
def test_batches_of_pictures_of_different_sizes(name: str) -> None:
    ours, theirs = pair(name, "saved")
    images = [pictures((40, 30)), [], pictures((30, 41), (70, 20), (13, 57))]
    texts = ["<image> one", "none", "a <image><image> b <image>"]
    expected = theirs_of(theirs, texts, images)
    prompts = [ours.prompt(text, row) for text, row in zip(texts, images, strict=True)]
    for prompt, ids, mask in zip(prompts, expected["input_ids"], expected["attention_mask"], strict=True):
        assert list(prompt.ids) == ids[mask == 1].tolist()
    batch = ours.layout.pack([prompt.images for prompt in prompts])
    check_tensors(batch, expected)
    unpacked = ours.layout.unpack(batch, [prompt.image_tokens for prompt in prompts])
    assert [len(row) for row in unpacked] == [len(prompt.images) for prompt in prompts]


@pytest.mark.parametrize("splitting", [True, False])
def test_splitting_asked_for_in_one_call(splitting: bool) -> None:
    ours, theirs = pair("idefics2", "saved")
    assert isinstance(ours.layout, NativeSizeLayout)
    layout = ours.layout.changed(do_image_splitting=splitting)
    images = pictures((40, 30), (90, 20))
    expected = theirs.image_processor([images], do_image_splitting=splitting, return_tensors="np")
    inputs = [each for picture in layout.prepare(images) for each in picture]
    check_tensors(layout.pack([inputs]), dict(expected))


TEXTS = (
    "Hello world",
    " lead and trail ",
    "a\nb  c\t\td",
    "",
    "<image> foo",
    "x<image>y",
    "<s>hi</s> there",
    "<end_of_utterance>\nAssistant:",
    "<|im_start|>user\n<|im_end|>",
    "naïve 日本語 🙂👨‍👩‍👧",
    "don't. won't , stop !",
)


@pytest.mark.parametrize(("name", "style"), CHECKPOINTS)
def test_tokenizers(name: str, style: str) -> None:
    ours, theirs = pair(name, style)
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.tokenizer.encode(text, add_special_tokens=special)
            assert ours.tokenizer.encode(text, special) == ids, text
            for skip in (True, False):
                expected = theirs.tokenizer.decode(ids, skip_special_tokens=skip)
                assert ours.tokenizer.decode(ids, skip_special_tokens=skip) == expected
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(ours.tokenizer, role) == getattr(theirs.tokenizer, role), role
        assert getattr(ours.tokenizer, f"{role}_id") == getattr(theirs.tokenizer, f"{role}_id"), role
    assert len(ours.tokenizer) == len(theirs.tokenizer)
    assert ours.tokenizer.vocab_size == theirs.tokenizer.vocab_size
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    assert ours.tokenizer.special_ids >= set(theirs.tokenizer.all_special_ids)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.sampled_from(["llava-siglip-qwen2", "llava-clip-llama", "idefics2"]))
def test_any_text(text: str, name: str) -> None:
    ours, theirs = pair(name, "saved")
    ids = theirs.tokenizer.encode(text)
    assert ours.tokenizer.encode(text) == ids
    assert ours.tokenizer.decode(ids) == theirs.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["llava-siglip-qwen2", "llava-clip-llama", "idefics2"])
def test_typed_tokens_equal_transformers_own_protection(name: str) -> None:
    """transformers has `sanitize_control_tokens`; where text and tokens meet the ids are the same."""
    ours, theirs = pair(name, "saved")
    token = "<|im_end|>" if "qwen" in name else "</s>"
    # Of a typed image token in idefics2, transformers makes a place for a picture; that is not to be equalled.
    for typed in (f"say {token} now", f"{token}", f"a{token}b {'' if name == 'idefics2' else '<image>'} c"):
        raw = [{"role": "user", "content": [{"type": "text", "text": typed}]}]
        prompt = ours.chat(parse_messages(raw))
        ids = theirs.apply_chat_template(
            raw, add_generation_prompt=True, tokenize=True, return_dict=False, sanitize_control_tokens=True
        )
        assert list(prompt.ids) == (ids[0] if isinstance(ids[0], list) else ids), typed


# --- image processors alone, over their settings -----------------------------------------------------------------

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "CLIPImageProcessor": [
        {},
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
        {"size": 50, "crop_size": 44, "resample": 2},
        {"size": {"height": 31, "width": 45}, "crop_size": {"height": 40, "width": 37}},
        {"size": [31, 45], "do_center_crop": False},
        {"size": {"shortest_edge": 60, "longest_edge": 100}, "crop_size": 61},
        {"size": {"max_height": 60, "max_width": 70}},
        {"do_resize": False, "crop_size": 35},
        {"do_rescale": False},
        {"do_normalize": False, "resample": 0},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [0.5, 1.0, 2.0], "resample": 1},
        {"do_resize": None, "size": None, "resample": None, "do_pad": None},
        {"do_center_crop": None, "crop_size": None, "size": [20, 30]},
        {"do_normalize": None, "image_mean": None},
    ],
    "SiglipImageProcessor": [
        {},
        {"size": {"height": 384, "width": 384}, "do_convert_rgb": None},
        {"size": 33},
        {"size": {"height": 20, "width": 31}, "resample": 2, "do_center_crop": True, "crop_size": 18},
    ],
    "LlavaImageProcessor": [{}, {"do_pad": True, "size": 40, "crop_size": 40}],
    "Idefics2ImageProcessor": [
        {},
        {"do_image_splitting": True},
        {"size": {"shortest_edge": 23, "longest_edge": 56}, "do_image_splitting": True},
        {"size": {"height": 30, "width": 41}},
        {"do_resize": False},
        {"do_normalize": False, "do_rescale": None, "size": {"shortest_edge": 50, "longest_edge": 70}},
    ],
}


def their_image_processor(kind: str, settings: dict[str, Any]) -> Any:
    import transformers

    return getattr(transformers, f"{kind}Pil")(**settings)


def whole(kind: str, given: dict[str, Any]) -> WholeImageLayout:
    found = read_settings({"image_processor_type": kind, **given}, default_kind="", supported=tuple(DEFAULTS))
    return WholeImageLayout(found, "<image>", 7, patch_size=14, n_additional_tokens=0, drops_class_token=False)


def native(given: dict[str, Any]) -> NativeSizeLayout:
    found = read_settings(given, default_kind="Idefics2ImageProcessor", supported=tuple(DEFAULTS))
    return NativeSizeLayout(found, "<image>", 7, "<fake>", n_tokens=4)


@pytest.mark.parametrize(
    ("kind", "given"), [(k, v) for k, variants in VARIANTS.items() if "Idefics" not in k for v in variants], ids=str
)
def test_whole_images(kind: str, given: dict[str, Any]) -> None:
    layout = whole(kind, given)
    theirs = their_image_processor(kind, given)
    for image in pictures(*SIZES):
        ((ours,),) = layout.prepare([image])
        (expected,) = theirs([image])["pixel_values"]
        assert ours.pixels.dtype == np.float32
        assert ours.pixels.shape == expected.shape
        assert np.abs(ours.pixels - expected).max() <= 1e-5, image.size


@pytest.mark.parametrize("given", VARIANTS["Idefics2ImageProcessor"], ids=str)
def test_native_sizes(given: dict[str, Any]) -> None:
    layout = native(given)
    theirs = their_image_processor("Idefics2ImageProcessor", given)
    # One pixel cannot be quartered in either library.
    images = pictures(*(size for size in SIZES if min(size) > 1))
    if not given.get("do_image_splitting"):
        images.append(toys.picture(1200, 300))
    expected = theirs([images[:2], images[2:]], return_tensors="np")
    rows = [[each for picture in layout.prepare(row) for each in picture] for row in (images[:2], images[2:])]
    check_tensors(layout.pack(rows), dict(expected))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 120),
    st.integers(1, 120),
    st.sampled_from([{}, {"size": 37, "crop_size": 29}, {"size": {"shortest_edge": 24, "longest_edge": 40}}]),
)
def test_any_size(width: int, height: int, given: dict[str, Any]) -> None:
    image = toys.picture(width, height)
    ((ours,),) = whole("CLIPImageProcessor", given).prepare([image])
    (expected,) = their_image_processor("CLIPImageProcessor", given)([image])["pixel_values"]
    assert np.array_equal(ours.pixels, expected)
    assert size_of(image) == (height, width)


def test_published_settings_of_both_families() -> None:
    """The settings that published files state, through both libraries, on a photograph-sized picture."""
    import json

    image = toys.picture(1000, 667)
    for name in ("llava-hf--llava-1.5-7b-hf", "llava-hf--llava-interleave-qwen-0.5b-hf", "HuggingFaceM4--idefics2-8b"):
        path = SHARED / name / "preprocessor_config.json"
        if not path.is_file():
            pytest.skip("the published files lie beside this repository, not in it")
        given = json.loads(path.read_text(encoding="utf-8"))
        kind = given["image_processor_type"]
        layout = native(given) if "Idefics2" in kind else whole(kind, given)
        expected = dict(their_image_processor(kind, given)([image], return_tensors="np"))
        check_tensors(layout.pack([layout.prepare([image])[0]]), expected)


def test_a_rendered_prompt_without_literals_is_encoded_as_plain_text() -> None:
    ours, _ = pair("llava-siglip-qwen2", "saved")
    for text in TEXTS:
        assert ours.tokenizer.encode(RenderedPrompt(text)) == ours.tokenizer.encode(text)
