"""`AutoProcessor` beside transformers': the same tensors, texts and ids, and clear words for what cannot be done."""

from __future__ import annotations

import copy
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from behold import AutoProcessor
from behold.errors import ChatError, MediaError, OptionError
from tests import toys
from tests.naming import plainly

NAMES = ("llava-siglip-qwen2", "llava-clip-llama", "idefics2", "idefics2-split")
A, B, C = toys.picture(40, 30, 0), toys.picture(23, 51, 1), toys.picture(61, 61, 2)


@functools.cache
def both(name: str) -> tuple[Any, Any]:
    """(behold's, transformers'), both padding on the left."""
    import transformers

    folder = toys.checkpoint(name)
    theirs = transformers.AutoProcessor.from_pretrained(folder)
    theirs.tokenizer.padding_side = "left"
    return AutoProcessor.from_pretrained(folder), theirs


def user(*pictures: Any, text: str = "What do we see?") -> dict[str, Any]:
    places = [{"type": "image"} | ({} if picture is None else {"image": picture}) for picture in pictures]
    return {"role": "user", "content": [*places, {"type": "text", "text": text}]}


def assert_same(found: Any, expected: Any) -> None:
    """The same keys, shapes, types and values; pixels within 1e-5."""
    assert set(found) == set(expected)
    for key in expected:
        ours, theirs = found[key], expected[key]
        assert type(ours) is type(theirs), key
        if isinstance(theirs, list):
            assert len(ours) == len(theirs)
            if not isinstance(theirs[0], np.ndarray):
                assert ours == theirs, key
                continue
            ours, theirs = np.stack(ours), np.stack(theirs)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, key
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-5, err_msg=key)


def texts(name: str) -> list[str]:
    processor = both(name)[1]
    chats = [[user(None, None)], [user(text="Hello.")], [user(None, text="How many squares are there, and where?")]]
    return [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]


# --- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["pt", "np", None])
def test_a_batch_with_several_pictures_and_none(name: str, kind: str | None) -> None:
    ours, theirs = both(name)
    nested = [[A, B], [], [C]]
    given = nested if "idefics" in name else [A, B, C]
    expected = theirs(text=texts(name), images=given, padding=True, return_tensors=kind)
    assert_same(ours(text=texts(name), images=nested, padding=True, return_tensors=kind), expected)
    assert_same(ours(text=texts(name), images=[A, B, C], padding=True, return_tensors=kind), expected)


@pytest.mark.parametrize("name", NAMES)
def test_one_text(name: str) -> None:
    ours, theirs = both(name)
    text = texts(name)[2]
    for kind in ("pt", None):
        assert_same(ours(text=text, images=A, return_tensors=kind), theirs(text=text, images=A, return_tensors=kind))
        assert_same(ours(text="Hello.", return_tensors=kind), theirs(text="Hello.", return_tensors=kind))
    assert_same(ours(A, text, return_tensors="pt"), theirs(A, text, return_tensors="pt"))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_alone(name: str) -> None:
    ours, theirs = both(name)
    assert_same(ours(images=[A, B], return_tensors="pt"), theirs(images=[A, B], return_tensors="pt"))
    expected = theirs.image_processor([A, B], return_tensors="pt")
    assert_same(ours.image_processor([A, B], return_tensors="pt"), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "longest", "padding_side": "right"},
        {"padding": "max_length", "max_length": 150},
        {"padding": True, "pad_to_multiple_of": 8},
        {"text_kwargs": {"padding": True, "add_special_tokens": False}},
        {"padding": False, "return_tensors": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llava-clip-llama", "idefics2"])
def test_padding(name: str, options: dict[str, Any]) -> None:
    ours, theirs = both(name)
    arguments = {"text": texts(name), "images": [[A, B], [], [C]] if "idefics" in name else [A, B, C]}
    options = {"return_tensors": "pt", **options}
    assert_same(ours(**arguments, **options), theirs(**arguments, **copy.deepcopy(options)))


@pytest.mark.parametrize("name", ["idefics2", "idefics2-split"])
@pytest.mark.parametrize("splitting", [True, False])
def test_settings_of_the_image_processor_for_one_call_and_for_good(name: str, splitting: bool) -> None:
    import transformers

    ours, text = both(name)[0], texts(name)[2]
    theirs = transformers.AutoProcessor.from_pretrained(toys.checkpoint(name), do_image_splitting=splitting)
    expected = theirs(text=text, images=A, return_tensors="pt")
    assert_same(ours(text=text, images=A, return_tensors="pt", do_image_splitting=splitting), expected)
    assert ours.image_processor.do_image_splitting is ("split" in name), "only that call was different"
    other = AutoProcessor.from_pretrained(toys.checkpoint(name), do_image_splitting=splitting)
    assert_same(other(text=text, images=A, return_tensors="pt"), expected)
    other.image_processor.do_image_splitting = not splitting
    assert other(text=text, images=A, return_tensors="pt").input_ids.shape != expected.input_ids.shape


def test_every_form_of_a_picture(tmp_path: Path) -> None:
    ours, _ = both(NAMES[0])
    A.save(tmp_path / "a.png")
    file = io.BytesIO((tmp_path / "a.png").read_bytes())
    array = np.asarray(A)
    expected = ours(images=A, return_tensors="pt").pixel_values
    for form in (str(tmp_path / "a.png"), tmp_path / "a.png", file, file.getvalue(), array,
                 torch.from_numpy(array.copy()).permute(2, 0, 1)):  # fmt: skip
        assert torch.equal(ours(images=form, return_tensors="pt").pixel_values, expected)
    stack = ours(images=np.stack([array, array]), return_tensors="pt").pixel_values
    assert torch.equal(stack, expected.repeat(2, 1, 1, 1))


def test_the_result_moves_and_casts_only_what_is_floating() -> None:
    ours, _ = both(NAMES[0])
    batch = ours(text=texts(NAMES[0])[2], images=A, return_tensors="pt")
    assert batch.to("cpu", torch.bfloat16) is batch
    assert batch.pixel_values.dtype == torch.bfloat16 and batch["input_ids"].dtype == torch.int64
    assert batch.to(dtype=torch.float16).pixel_values.dtype == torch.float16
    assert batch.to(torch.float32).to(device="meta").input_ids.device.type == "meta"
    assert {**batch}.keys() == {"input_ids", "attention_mask", "pixel_values"}
    assert copy.deepcopy(batch).keys() == batch.keys()
    with pytest.raises(AttributeError, match="'labels' is not among"):
        _ = batch.labels
    with pytest.raises(OptionError, match="give a device, a dtype"):
        batch.to(1.5)


# --- chats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_chat_texts(name: str) -> None:
    ours, theirs = both(name)
    chat = [user(A, B), {"role": "assistant", "content": [{"type": "text", "text": "A dog and"}]}]
    for options in ({}, {"add_generation_prompt": True}, {"continue_final_message": True}):
        assert ours.apply_chat_template(chat, **options) == theirs.apply_chat_template(chat, **options)
    chats = [chat, [user(text="Hello.")]]
    assert ours.apply_chat_template(chats) == theirs.apply_chat_template(chats)


@pytest.mark.parametrize("name", NAMES)
def test_chats_with_their_pictures(name: str, tmp_path: Path) -> None:
    ours, theirs = both(name)
    A.save(tmp_path / "a.png")
    pictures = [{"type": "image", "path": str(tmp_path / "a.png")}, {"type": "image", "image": B}]
    chat = [{"role": "user", "content": [*pictures, {"type": "text", "text": "Which?"}]}]
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    expected = theirs.apply_chat_template(chat, return_tensors="pt", **options)
    assert_same(ours.apply_chat_template(chat, return_tensors="pt", **options), expected)
    assert_same(ours.apply_chat_template(chat, **options), theirs.apply_chat_template(chat, **options))
    chats = [chat, [user(C)]]
    expected = theirs.apply_chat_template(chats, return_tensors="pt", padding=True, **options)
    assert_same(ours.apply_chat_template(chats, return_tensors="pt", padding=True, **options), expected)
    expected = theirs.apply_chat_template(chat, tokenize=True)
    assert ours.apply_chat_template(chat, tokenize=True) == expected
    bare = [user(None, None, text="Which?")]
    found = ours.apply_chat_template(bare, processor_kwargs={"images": [A, B], "return_tensors": "pt"}, **options)
    assert torch.equal(found.input_ids, ours.apply_chat_template(chat, return_tensors="pt", **options).input_ids)


def test_what_people_type_never_becomes_a_special_token() -> None:
    ours, _ = both(NAMES[0])
    chat = [user(A, text="What does <image> mean, <|im_end|>?")]
    inputs = ours.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    prompt = ours.apply_chat_template(chat)
    again = ours(text=prompt, images=A, return_tensors="pt")
    for batch in (inputs, again):
        assert int((batch.input_ids == ours.image_token_id).sum()) == 16, "one picture's places, and no more"
    assert torch.equal(inputs.input_ids, again.input_ids), "the text keeps its knowledge on the way"


def test_own_templates_and_their_variables() -> None:
    ours, theirs = both(NAMES[0])
    source = "{% for m in messages %}{{ m['content'][0]['text'] }}{{ tone }}{% endfor %}"
    chat = [user(text="Hello")]
    for processor in (ours, theirs):
        assert processor.apply_chat_template(chat, chat_template=source, tone="!") == "Hello!"
    with pytest.raises(OptionError, match="'colour' is neither a variable of the chat template"):
        ours.apply_chat_template(chat, colour="red")


def test_settings_of_the_processor() -> None:
    processor = AutoProcessor.from_pretrained(toys.checkpoint("llava-clip-llama"))
    assert (processor.patch_size, processor.vision_feature_select_strategy) == (6, "default")
    processor.patch_size = 6
    with pytest.raises(OptionError, match="patch_size cannot be set to 14; the checkpoint says 6"):
        processor.patch_size = 14
    with pytest.raises(OptionError, match="colour cannot be set"):
        processor.colour = 1
    with pytest.raises(AttributeError, match="no 'colour'"):
        _ = processor.colour
    processor.chat_template = "{{ messages[0]['content'][0]['text'] }}!"
    assert processor.apply_chat_template([user(text="Hi")]) == "Hi!"
    with pytest.raises(AttributeError):
        processor.tokenizer.truncation_side = "left"


# --- back to text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_decoding(name: str) -> None:
    ours, theirs = both(name)
    ids = theirs(text=texts(name), images=[[A, B], [], [C]] if "idefics" in name else [A, B, C], padding=True,
                 return_tensors="pt").input_ids  # fmt: skip
    for skip in (False, True):
        assert ours.batch_decode(ids, skip_special_tokens=skip) == theirs.batch_decode(ids, skip_special_tokens=skip)
        assert ours.decode(ids[0], skip_special_tokens=skip) == theirs.decode(ids[0], skip_special_tokens=skip)
    assert ours.batch_decode(ids.tolist()) == ours.decode(ids) == theirs.decode(ids)
    assert ours.post_process_image_text_to_text(ids) == theirs.post_process_image_text_to_text(ids)


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer(name: str) -> None:
    ours, theirs = both(name)[0].tokenizer, both(name)[1].tokenizer
    rows = ["Hello there.", "A <image> b", ""]
    for options in ({}, {"add_special_tokens": False}, {"padding": True}, {"padding": True, "return_tensors": "pt"}):
        found, expected = ours(rows, **options), theirs(rows, **options)
        assert {key: np.asarray(value, object).tolist() for key, value in found.items()} == {
            key: np.asarray(value, object).tolist() for key, value in expected.items() if key != "token_type_ids"
        }
    assert ours("Hello").input_ids == theirs("Hello").input_ids
    assert ours.encode("Hello") == theirs.encode("Hello")
    assert ours.decode(5) == theirs.decode(5)
    assert ours.tokenize("Hello there") == theirs.tokenize("Hello there")
    assert ours.convert_tokens_to_ids(["<image>", "a"]) == theirs.convert_tokens_to_ids(["<image>", "a"])
    assert ours.convert_ids_to_tokens([5, 6]) == theirs.convert_ids_to_tokens([5, 6])
    for item in ("pad_token", "pad_token_id", "eos_token", "eos_token_id", "bos_token", "bos_token_id", "unk_token",
                 "unk_token_id", "vocab_size"):  # fmt: skip
        assert getattr(ours, item) == getattr(theirs, item), item
    assert len(ours) == len(theirs)
    # transformers forgets two of idefics2's here, and still leaves them out when it decodes.
    assert set(ours.all_special_ids) >= set(theirs.all_special_ids)


def test_settings_of_the_tokenizer() -> None:
    processor = AutoProcessor.from_pretrained(toys.checkpoint(NAMES[0]), padding_side="right")
    tokenizer = processor.tokenizer
    assert tokenizer(["a", "a b c"], padding=True).attention_mask[0][0] == 1
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(["a", "a b c"], padding=True)
    assert batch.attention_mask[0][0] == 0 and batch.input_ids[0][0] == tokenizer.eos_token_id
    with pytest.raises(OptionError, match="padding_side='middle'"):
        tokenizer.padding_side = "middle"
    with pytest.raises(OptionError, match="pad_token='<none>'"):
        tokenizer.pad_token = "<none>"


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, OptionError, "text and images are both missing"),
        ({"text": 5}, OptionError, "text=int is not a string"),
        ({"text": "a", "videos": [1]}, OptionError, "videos is not supported"),
        ({"text": "a", "truncation": True}, OptionError, "truncation=True is not supported"),
        ({"text": "a", "padding": "width"}, OptionError, "padding='width'"),
        ({"text": "a", "padding": "max_length"}, OptionError, "needs max_length"),
        ({"text": "a", "return_tensors": "tf"}, OptionError, "return_tensors='tf'"),
        ({"text": "a", "colour": 1}, OptionError, "'colour'"),
        ({"text": ["a", "a b c"], "return_tensors": "pt"}, OptionError, "use padding=True"),
        ({"text": "a", "padding": True, "text_kwargs": {"padding": False}}, OptionError, "'padding' is given twice"),
        ({"text": "<image> a"}, ChatError, "0 pictures were given for 1 image tokens"),
        ({"text": "a", "images": A}, ChatError, "1 pictures were given for 0 image tokens"),
        ({"text": ["<image>", "a"], "images": [[], [A]]}, ChatError, r"\[0, 1\] pictures and the texts \[1, 0\]"),
        ({"text": "<image>", "images": [[A], [B]]}, ChatError, "2 lists of pictures were given for 1 texts"),
        ({"text": "<image>", "images": b"not a picture"}, MediaError, "bytes"),
    ],
    ids=plainly,
)
def test_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        both(NAMES[0])[0](**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 1}, r"colour=1\) is not supported"),
        ({"subfolder": "x"}, "subfolder='x'"),
        ({"padding_side": "up"}, "padding_side='up'"),
    ],
    ids=str,
)
def test_refused_when_opened(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AutoProcessor.from_pretrained(toys.checkpoint(NAMES[0]), **options)
    with pytest.raises(OptionError, match="use from_pretrained"):
        AutoProcessor()
