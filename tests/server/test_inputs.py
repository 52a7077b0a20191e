"""Every form in which clients send text and pictures, and what is said of a part that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from behold.api.server.errors import ApiError
from behold.api.server.inputs import chat_messages, response_messages
from behold.api.server.schemas_chat import ChatMessage
from behold.chat.policy import MediaPolicy
from behold.types import ImagePart, Message, TextPart
from tests import toys
from tests.server.asking import PICTURE, base64_of, data_uri, image_url, png, text

POLICY = MediaPolicy.for_server()
OTHER = toys.picture(30, 40, 3)


def read(*messages: dict[str, Any], policy: MediaPolicy = POLICY) -> list[Message]:
    return chat_messages([ChatMessage.model_validate(message) for message in messages], policy)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def wrong(*messages: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(*messages)
    assert caught.value.status == 400
    assert caught.value.message.startswith(f"{caught.value.param}: ")
    return caught.value


def only_picture(message: Message) -> Image.Image:
    (part,) = message.parts
    assert isinstance(part, ImagePart)
    return part.image


FORMS: dict[str, Any] = {
    "openai": image_url(data_uri()),
    "a bare string": {"type": "image_url", "image_url": data_uri()},
    "raw base64": image_url(base64_of()),
    "raw base64, bare": {"type": "image_url", "image_url": base64_of()},
    "wrong mime type": image_url(f"data:image/jpeg;base64,{base64_of()}"),
    "no mime type": image_url(f"data:;base64,{base64_of()}"),
    "langchain url": {"type": "image", "url": data_uri()},
    "langchain base64": {"type": "image", "base64": base64_of(), "mime_type": "image/png"},
    "langchain source_type": {"type": "image", "source_type": "base64", "data": base64_of(), "mime_type": "image/png"},
    "anthropic base64": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": base64_of()},
    },
    "anthropic url": {"type": "image", "source": {"type": "url", "url": data_uri()}},
    "hugging face": {"type": "image", "image": data_uri()},
    "responses": {"type": "input_image", "image_url": data_uri()},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_picture_in_any_form(form: Any) -> None:
    (message,) = read(user(form))
    assert only_picture(message).tobytes() == PICTURE.tobytes()
    (again,) = response_messages([user(form)], None, POLICY)
    assert only_picture(again).tobytes() == PICTURE.tobytes()


def test_text_in_any_form_and_any_role() -> None:
    parts = [text("a"), {"type": "input_text", "text": "b"}, "c", {"type": "output_text", "text": "d"}]
    for role, shown in (("system", "system"), ("developer", "system"), ("user", "user"), ("assistant", "assistant")):
        as_list, as_string = read({"role": role, "content": parts}, {"role": role, "content": "abcd"})
        assert (as_list.role, as_list.text) == (as_string.role, as_string.text) == (shown, "abcd")


def test_order_is_kept_and_pictures_may_be_in_older_turns() -> None:
    messages = read(
        user(text("first"), image_url(data_uri()), text("second"), image_url(data_uri(OTHER))),
        {"role": "assistant", "content": "yes", "name": "bot", "audio": None, "tool_calls": []},
        user(image_url(data_uri(OTHER))),
    )
    first = messages[0].parts
    assert [type(part) for part in first] == [TextPart, ImagePart, TextPart, ImagePart]
    assert [image.size for image in messages[0].images] == [(40, 30), (30, 40)]
    assert messages[1].extra == {"name": "bot"}
    assert only_picture(messages[2]).size == (30, 40)


@pytest.mark.parametrize(("given", "expected"), [(None, "auto"), ("auto", "auto"), ("low", "low"), ("high", "high")])
def test_detail_is_passed_on(given: Any, expected: str) -> None:
    forms = [image_url(data_uri(), detail=given), {"type": "input_image", "image_url": data_uri(), "detail": given}]
    for form in forms:
        (part,) = read(user(form))[0].parts
        assert isinstance(part, ImagePart) and part.detail == expected


def test_an_assistant_turn_without_content() -> None:
    turns = read({"role": "assistant", "content": None}, {"role": "assistant", "content": None, "refusal": "No."})
    assert [turn.parts for turn in turns] == [(), (TextPart("No."),)]


@pytest.mark.parametrize(
    ("part", "place", "said"),
    [
        (image_url("data:image/png;base64,AAAA"), ".image_url", "not a picture"),
        (image_url(data_uri()[:-400]), ".image_url", ""),
        (image_url("data:image/png,"), ".image_url", ""),
        (image_url("https://example.org/a.png"), ".image_url", "not allowed"),
        (image_url("ftp://example.org/a.png"), ".image_url", "'ftp'"),
        (image_url(""), ".image_url", ""),
        ({"type": "image_url", "image_url": {}}, ".image_url", "missing"),
        ({"type": "image_url", "image_url": 5}, ".image_url", "a number"),
        ({"type": "image_url"}, "", "no picture"),
        ({"type": "image", "url": data_uri(), "base64": base64_of()}, "", "several ways"),
        ({"type": "image", "file_id": "file-1"}, ".file_id", "no files are stored"),
        ({"type": "image", "base64": "short"}, ".base64", ""),
        (image_url(data_uri(), detail="ultra"), ".image_url.detail", "auto, low, high"),
        ({"type": "input_image", "image_url": data_uri(), "detail": ["low"]}, ".detail", "a list"),
        ({"type": "video_url", "video_url": {"url": "x"}}, ".video_url", "video is not supported"),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, ".input_audio", "audio is not supported"),
        ({"type": "file", "file": {"file_id": "x"}}, ".file", "files are not supported"),
        ({"type": "text"}, ".text", "must be a string"),
        ({"type": "text", "text": ["x"]}, ".text", "a list"),
        ({"type": "table"}, ".type", "'table'"),
        ({"type": ["text"]}, ".type", "a list"),
        ({}, ".type", "missing"),
        (5, "", "a number"),
        (None, "", "missing"),
    ],
)
def test_a_part_that_cannot_be_read_is_named(part: Any, place: str, said: str) -> None:
    error = wrong({"role": "user", "content": "hello"}, user(text("see"), part))
    assert error.param == f"messages[1].content[1]{place}"
    assert said in error.message
    with pytest.raises(ApiError) as caught:
        response_messages([user(text("see"), part)], None, POLICY)
    assert caught.value.param == f"input[0].content[1]{place}"


def test_no_file_of_this_machine_is_ever_read(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    for address in (str(path), f"file://{path}", f"file:{path}", f"FILE://{path}"):
        for part in (image_url(address), {"type": "image", "url": address}, {"type": "image", "image": address}):
            error = wrong(user(part))
            assert "no such file" not in error.message.lower()


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls"),
        ({"role": "assistant", "audio": {"id": "1"}}, "messages[0].audio"),
    ],
)
def test_a_message_that_cannot_be_read_is_named(message: dict[str, Any], param: str) -> None:
    assert wrong(message).param == param


def test_items_of_the_responses_endpoint() -> None:
    messages = response_messages(
        [
            {"role": "user", "content": "hello"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yes"}], "id": "m"},
            {"role": "developer", "content": "be brief"},
        ],
        "be kind",
        POLICY,
    )
    assert [(each.role, each.text) for each in messages] == [
        ("system", "be kind"),
        ("user", "hello"),
        ("assistant", "yes"),
        ("system", "be brief"),
    ]
    assert response_messages("hello", None, POLICY) == [Message("user", (TextPart("hello"),))]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ("hello", "input[0]"),
        ({"type": "function_call_output", "call_id": "1", "output": "x"}, "input[0].type"),
        ({"type": "item_reference", "id": "1"}, "input[0].type"),
        ({"role": "user"}, "input[0].content"),
        ({"content": "x"}, "input[0].role"),
    ],
)
def test_an_item_that_cannot_be_read_is_named(item: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        response_messages([item], None, POLICY)
    assert (caught.value.status, caught.value.param) == (400, param)
