"""Every accepted form of a conversation, and what is said about the others."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from behold.chat.messages import attach_images, parse_messages
from behold.errors import ChatError, MediaError
from behold.types import ImagePart, ImagePlace, Message, TextPart
from tests.naming import plainly


def picture(shade: int = 0) -> Image.Image:
    return Image.new("RGB", (4, 3), (shade, shade, shade))


def _base64() -> str:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


BASE64 = _base64()


def only(raw: Any) -> Message:
    (message,) = parse_messages(raw)
    return message


@pytest.mark.parametrize(
    "raw",
    [
        {"role": "user", "content": "Hi"},
        [{"role": "user", "content": "Hi"}],
        ({"role": "user", "content": "Hi"},),
        [{"role": "user", "content": ["Hi"]}],
        [{"role": "user", "content": {"type": "text", "text": "Hi"}}],
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        [{"role": "user", "content": [{"text": "Hi"}]}],
        [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
        Message("user", (TextPart("Hi"),)),
        [Message("user", (TextPart("Hi"),))],
        (message for message in [{"role": "user", "content": "Hi", "name": None}]),
    ],
    ids=plainly,
)
def test_text(raw: object) -> None:
    assert only(raw) == Message("user", (TextPart("Hi"),))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": picture()},
        {"type": "image", "base64": BASE64},
        {"type": "image", "base64": f"data:image/png;base64,{BASE64}"},
        {"type": "image", "url": f"data:image/png;base64,{BASE64}"},
        {"type": "image_url", "image_url": f"data:image/png;base64,{BASE64}"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}", "detail": "low"}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{BASE64}"},
        {"image": picture()},
    ],
    ids=plainly,
)
def test_pictures(part: dict[str, Any]) -> None:
    (image,) = only({"role": "user", "content": [part]}).images
    assert image.size == (4, 3)


@pytest.mark.parametrize("detail", ["low", "high", "auto"])
def test_detail_beside_the_address_or_beside_the_type(detail: str) -> None:
    url = f"data:image/png;base64,{BASE64}"
    for part in (
        {"type": "image_url", "image_url": {"url": url, "detail": detail}},
        {"type": "image_url", "image_url": {"url": url, "detail": None}, "detail": detail},
        {"type": "input_image", "image_url": url, "detail": detail},
        {"type": "image", "image": picture(), "detail": detail},
    ):
        assert [each.detail for each in only({"role": "user", "content": [part]}).pictures] == [detail]
    bare = parse_messages([{"role": "user", "content": [{"type": "image", "detail": detail}, {"type": "image"}]}])
    (message,) = attach_images(bare, [picture(), picture()])
    assert [each.detail for each in message.pictures] == [detail, "auto"]


@pytest.mark.parametrize("detail", ["original", "", "Low", 3, ["low"], True])
def test_a_detail_that_is_none(detail: object) -> None:
    for part in (
        {"type": "image_url", "image_url": {"url": "x", "detail": detail}},
        {"type": "image", "detail": detail},
    ):
        with pytest.raises(ChatError, match=r"part 0 has the detail .*; it is one of auto, low, high"):
            only({"role": "user", "content": [part]})


def test_a_path(tmp_path: Any) -> None:
    picture(9).save(tmp_path / "a.png")
    for part in ({"type": "image", "path": tmp_path / "a.png"}, {"type": "image", "url": str(tmp_path / "a.png")}):
        assert only({"role": "user", "content": [part]}).images[0].getpixel((0, 0)) == (9, 9, 9)


def test_further_keys_are_kept_and_nulls_dropped() -> None:
    message = only({"role": "assistant", "content": None, "tool_calls": [{"id": 1}], "name": "a", "refusal": None})
    assert message.parts == ()
    assert message.extra == {"tool_calls": [{"id": 1}], "name": "a"}


def test_the_given_messages_are_not_changed() -> None:
    raw = [{"role": "user", "content": [{"type": "image"}], "name": None}]
    attach_images(parse_messages(raw), [picture()])
    assert raw == [{"role": "user", "content": [{"type": "image"}], "name": None}]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("Hi", ["str", "list"]),
        (3, ["int"]),
        ([], ["empty"]),
        (["Hi"], ["message 0", "str"]),
        ([{"content": "Hi"}], ["message 0", "None"]),
        ([{"role": "", "content": "Hi"}], ["role ''"]),
        ([{"role": 3, "content": "Hi"}], ["role 3"]),
        ([{"role": "user", "content": "a"}, {"role": "user"}], ["message 1 (user)", "no content"]),
        ([{"role": "user", "content": 3}], ["int"]),
        ([{"role": "user", "content": b"Hi"}], ["bytes"]),
        ([{"role": "user", "content": [3]}], ["part 0", "int"]),
        ([{"role": "user", "content": ["a", {"type": "video", "video": "x"}]}], ["part 1", "'video'", "image_url"]),
        ([{"role": "user", "content": [{}]}], ["None"]),
        ([{"role": "user", "content": [{"type": "text"}]}], ["NoneType", "string"]),
        ([{"role": "user", "content": [{"type": "image_url"}]}], ["without a picture"]),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], ['without a "url"']),
        ([{"role": "user", "content": [{"type": "image", "url": "a", "path": "b"}]}], ["url, path", "one of them"]),
    ],
    ids=str,
)
def test_malformed_messages(raw: object, words: list[str]) -> None:
    with pytest.raises(ChatError) as caught:
        parse_messages(raw)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_bad_picture_is_found_by_its_message() -> None:
    raw = [
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": ["a", {"type": "image", "url": "no such file"}]},
    ]
    with pytest.raises(MediaError, match=r"message 1 \(user\), part 1: .*no such file"):
        parse_messages(raw)


def test_loading_is_the_callers_to_replace() -> None:
    seen = []

    def load(source: object) -> Image.Image:
        seen.append(source)
        return picture()

    parse_messages([{"role": "user", "content": [{"type": "image", "url": "anything"}]}], load=load)
    assert seen == ["anything"]


def test_pictures_given_separately_fill_bare_places_in_order() -> None:
    raw = [
        {"role": "user", "content": [{"type": "image"}, {"type": "image", "image": picture(9)}, {"type": "image"}]},
        {"role": "user", "content": [{"type": "image"}]},
    ]
    filled = attach_images(parse_messages(raw), [picture(1), picture(2), picture(3)])
    shades = [image.getpixel((0, 0))[0] for message in filled for image in message.images]  # type: ignore[index]
    assert shades == [1, 9, 2, 3]
    assert not any(isinstance(part, ImagePlace) for message in filled for part in message.parts)


def test_nothing_to_attach() -> None:
    messages = parse_messages([{"role": "user", "content": "Hi"}])
    assert attach_images(messages, []) == messages
    whole = [Message("user", (ImagePart(picture()),))]
    assert attach_images(whole, [])[0] is whole[0]


@pytest.mark.parametrize("n_images", [0, 1, 4])
def test_pictures_and_places_must_match(n_images: int) -> None:
    raw = [
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}]},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": [{"type": "image"}]},
    ]
    with pytest.raises(ChatError) as caught:
        attach_images(parse_messages(raw), [picture()] * n_images)
    text = str(caught.value)
    assert f"{n_images} pictures were given for 3 places" in text
    assert "message 0 (user) has 2, message 2 (user) has 1" in text


def test_pictures_without_any_place() -> None:
    with pytest.raises(ChatError, match="1 pictures were given for 0 places"):
        attach_images(parse_messages([{"role": "user", "content": "Hi"}]), [picture()])
