"""Every accepted form of a conversation to one: list[Message], with pictures loaded and checked.

Accepted are Hugging Face messages ({"type": "image"} as a bare place, or with image/url/path/base64), OpenAI messages
({"type": "image_url", "image_url": {"url": …, "detail": "low"} or "…"}), plain strings as content, one dict instead of
a list, and behold.types.Message. torch is never reached from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast, get_args

from PIL.Image import Image

from behold.chat.media import load_image
from behold.errors import ChatError, MediaError
from behold.types import Detail, ImagePart, ImagePlace, Message, Part, TextPart

_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image")
_IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")
_DETAILS = get_args(Detail)
Load = Callable[[Any], Image]


def parse_messages(raw: object, *, load: Load = load_image) -> list[Message]:
    """Any accepted form to messages. `load` turns what stands for a picture into an upright RGB image.

    Raises:
        ChatError: a message or part is malformed; the text says which one and what is expected.
        MediaError: a picture cannot be loaded; the text says in which message.
    """
    if isinstance(raw, Message | Mapping):
        raw = [raw]
    if isinstance(raw, str) or not isinstance(raw, Iterable):
        raise ChatError(
            f"messages were given as {type(raw).__name__}; give a list such as "
            '[{"role": "user", "content": "What do we see?"}].'
        )
    messages = [_message(item, index, load) for index, item in enumerate(raw)]
    if not messages:
        raise ChatError("the conversation is empty; give at least one message.")
    return messages


def attach_images(messages: Sequence[Message], images: Sequence[Image]) -> list[Message]:
    """Fill the bare places of all messages, in order, with `images`. Pictures already in place stay where they are.

    Raises:
        ChatError: there are more or fewer pictures than places; the text says how many of each, and where.
    """
    n_places = sum(isinstance(part, ImagePlace) for message in messages for part in message.parts)
    if n_places != len(images):
        raise ChatError(
            f"{len(images)} pictures were given for {n_places} places ({_places(messages)}). "
            'Give as many pictures as there are {"type": "image"} parts, in the same order.'
        )
    remaining = iter(images)
    return [
        Message(message.role, tuple(_filled(message.parts, remaining)), message.extra)
        if any(isinstance(part, ImagePlace) for part in message.parts)
        else message
        for message in messages
    ]


def _filled(parts: Iterable[Part], images: Iterator[Image]) -> Iterator[Part]:
    for part in parts:
        yield ImagePart(next(images), part.detail) if isinstance(part, ImagePlace) else part


def _places(messages: Sequence[Message]) -> str:
    """Where the bare places are, for an error message: "message 0 (user) has 2, message 2 (user) has 1"."""
    counts = [sum(isinstance(part, ImagePlace) for part in message.parts) for message in messages]
    found = [
        f"message {index} ({message.role}) has {count}"
        for index, (message, count) in enumerate(zip(messages, counts, strict=True))
        if count
    ]
    return ", ".join(found) or "no message has any"


def _message(item: object, index: int, load: Load) -> Message:
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping):
        raise ChatError(f"message {index} is {type(item).__name__}; each message is a dict with 'role' and 'content'.")
    # Clients send keys such as tool_calls or content as null; templates are written for a missing key.
    given = {key: value for key, value in item.items() if value is not None}
    role = given.pop("role", None)
    if not isinstance(role, str) or not role:
        raise ChatError(f"message {index} has the role {role!r}; a role is text such as 'user' or 'assistant'.")
    if "content" not in given and "tool_calls" not in given:
        raise ChatError(f"message {index} ({role}) has no content; content is text or a list of parts.")
    content = given.pop("content", ())
    where = f"message {index} ({role})"
    if isinstance(content, str):
        parts: tuple[Part, ...] = (TextPart(content),)
    elif isinstance(content, Mapping):
        parts = (_part(content, f"{where}, its content", load),)
    elif isinstance(content, Iterable) and not isinstance(content, bytes):
        parts = tuple(_part(part, f"{where}, part {n}", load) for n, part in enumerate(content))
    else:
        raise ChatError(f"{where} has content of type {type(content).__name__}; it is text or a list of parts.")
    return Message(role, parts, given)


def _part(part: object, where: str, load: Load) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    if isinstance(part, TextPart | ImagePart | ImagePlace):
        return part
    if not isinstance(part, Mapping):
        raise ChatError(f'{where} is {type(part).__name__}; a part is text or a dict such as {{"type": "image"}}.')
    kind = part.get("type", _guessed_type(part))
    if kind in _TEXT_TYPES:
        text = part.get("text")
        if not isinstance(text, str):
            raise ChatError(f"{where} is a text part whose text is {type(text).__name__}; it must be a string.")
        return TextPart(text)
    if kind in _IMAGE_TYPES:
        return _image(part, where, load)
    raise ChatError(f"{where} has the type {kind!r}; 'text', 'image' and 'image_url' are supported.")


def _guessed_type(part: Mapping[Any, Any]) -> str | None:
    if "text" in part:
        return "text"
    return "image" if any(key in part for key in _IMAGE_KEYS) else None


def _image(part: Mapping[Any, Any], where: str, load: Load) -> Part:
    given = [key for key in _IMAGE_KEYS if part.get(key) is not None]
    if not given:
        if part.get("type", "image") != "image":
            raise ChatError(f'{where} is an {part["type"]!r} part without a picture; give "image_url": {{"url": …}}.')
        return ImagePlace(_detail(part, where))
    if len(given) > 1:
        raise ChatError(f"{where} gives one picture in several ways ({', '.join(given)}); give one of them.")
    source = part[given[0]]
    detail = _detail(source if isinstance(source, Mapping) and source.get("detail") is not None else part, where)
    if given[0] == "base64" and isinstance(source, str) and not source.startswith("data:"):
        source = f"data:;base64,{source}"  # said to be base64, so it is never taken for a path
    if isinstance(source, Mapping):
        source = source.get("url")
        if not isinstance(source, str):
            raise ChatError(f'{where} has an image_url without a "url"; give {{"image_url": {{"url": "https://…"}}}}.')
    try:
        return ImagePart(load(source), detail)
    except MediaError as error:
        raise MediaError(f"{where}: {error}") from error


def _detail(given: Mapping[Any, Any], where: str) -> Detail:
    """How much a picture may cost, as the OpenAI API has it: beside "url", or beside "type"."""
    detail = given.get("detail")
    if detail is None:
        return "auto"
    if not isinstance(detail, str) or detail not in _DETAILS:
        raise ChatError(f"{where} has the detail {detail!r:.40}; it is one of {', '.join(_DETAILS)}.")
    return cast("Detail", detail)
