"""Messages and items as clients send them to behold's own, with pictures loaded. Every refusal names the part.

Pictures come as OpenAI's image_url (an object or a bare string) and input_image, as LangChain's and Anthropic's image
parts, and as base64 without the data: prefix; never as a path. Decoding takes CPU time: call from a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast, get_args

from behold.api.server.errors import ApiError
from behold.chat.media import load_image
from behold.errors import MediaError
from behold.types import Detail, ImagePart, Message, Part, TextPart

if TYPE_CHECKING:
    from behold.api.server.schemas_chat import ChatMessage
    from behold.chat.policy import MediaPolicy

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_IMAGE_TYPES = ("image_url", "image", "input_image")
_IMAGE_KEYS = ("image_url", "url", "base64", "data", "image", "source")
_BASE64_KEYS = ("base64", "data")
_SEND_IMAGES = 'send pictures as {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}'
_CANNOT_READ = {
    "video_url": f"video is not supported; {_SEND_IMAGES}, for instance single frames",
    "video": f"video is not supported; {_SEND_IMAGES}, for instance single frames",
    "input_video": f"video is not supported; {_SEND_IMAGES}, for instance single frames",
    "input_audio": "audio is not supported; send text and pictures",
    "audio_url": "audio is not supported; send text and pictures",
    "audio": "audio is not supported; send text and pictures",
    "file": f"files are not supported; {_SEND_IMAGES}",
    "input_file": f"files are not supported; {_SEND_IMAGES}",
}
_NO_TOOLS = "this server calls no tools; leave out such turns"


def chat_messages(messages: Sequence[ChatMessage], policy: MediaPolicy) -> list[Message]:
    """The `messages` of /v1/chat/completions.

    Raises:
        ApiError: 400; `param` is the message or part, such as messages[0].content[1].image_url.
    """
    return [_chat_message(message, f"messages[{index}]", policy) for index, message in enumerate(messages)]


def response_messages(asked: str | Sequence[Any], instructions: str | None, policy: MediaPolicy) -> list[Message]:
    """The `input` and `instructions` of /v1/responses.

    Raises:
        ApiError: 400; `param` is the item or part, such as input[0].content[1].image_url.
    """
    first = [] if instructions is None else [Message("system", (TextPart(instructions),))]
    if isinstance(asked, str):
        return [*first, Message("user", (TextPart(asked),))]
    return first + [_item(item, f"input[{index}]", policy) for index, item in enumerate(asked)]


@contextmanager
def conversation_in(field: str) -> Iterator[None]:
    """What is wrong with a conversation as a whole (its length, or the template refuses it) names its field."""
    try:
        yield
    except ApiError as error:
        if error.param == "messages" or (error.param is None and error.code == "context_length_exceeded"):
            error.param = field
        raise


def _chat_message(message: ChatMessage, where: str, policy: MediaPolicy) -> Message:
    role = _role(message.role, where)
    extra = {key: value for key, value in (message.model_extra or {}).items() if value is not None}
    for key in ("tool_calls", "function_call", "audio"):
        if extra.pop(key, None):
            raise _wrong(f"{where}.{key}", "the model cannot read it; leave it out")
    content = message.content
    if content is None:
        if role != "assistant":
            raise _wrong(f"{where}.content", "it is missing; content is text or a list of parts")
        content = extra.pop("refusal", [])
    return Message(role, _parts(content, f"{where}.content", policy), extra)


def _item(item: object, where: str, policy: MediaPolicy) -> Message:
    if not isinstance(item, Mapping):
        raise _wrong(where, f"it is {_kind(item)}; an item is an object with a role and content")
    if item.get("type", "message") != "message":
        raise _wrong(f"{where}.type", f"items of type {_shown(item['type'])} are not supported; send messages")
    if item.get("content") is None:
        raise _wrong(f"{where}.content", "it is missing; content is text or a list of parts")
    return Message(_role(item.get("role"), where), _parts(item["content"], f"{where}.content", policy))


def _role(role: object, where: str) -> str:
    if isinstance(role, str) and role in _ROLES:
        return _ROLES[role]
    advice = _NO_TOOLS if role in ("tool", "function") else f"it is {_shown(role)}; roles are {', '.join(_ROLES)}"
    raise _wrong(f"{where}.role", advice)


def _parts(content: object, where: str, policy: MediaPolicy) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    if isinstance(content, Mapping):
        return (_part(content, where, policy),)
    if not isinstance(content, Sequence):
        raise _wrong(where, f"it is {_kind(content)}; content is text or a list of parts")
    return tuple(_part(part, f"{where}[{index}]", policy) for index, part in enumerate(content))


def _part(part: object, where: str, policy: MediaPolicy) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    if not isinstance(part, Mapping):
        raise _wrong(where, f"it is {_kind(part)}; a part is text or an object with a type")
    kind = part.get("type")
    if not isinstance(kind, str):
        raise _wrong(f"{where}.type", f"it is {_kind(kind)}; parts are text and image_url")
    if kind in _TEXT_KEYS:
        key = _TEXT_KEYS[kind]
        if not isinstance(part.get(key), str):
            raise _wrong(f"{where}.{key}", f"it is {_kind(part.get(key))}; it must be a string")
        return TextPart(part[key])
    if kind in _IMAGE_TYPES:
        return _picture(part, where, policy)
    if kind in _CANNOT_READ:
        raise _wrong(f"{where}.{kind}" if kind in part else where, _CANNOT_READ[kind])
    raise _wrong(f"{where}.type", f"it is {_shown(kind)}; parts are text and image_url")


def _picture(part: Mapping[str, Any], where: str, policy: MediaPolicy) -> ImagePart:
    """One picture from any of the forms; what says how it is given differs from client to client."""
    if part.get("file_id") is not None:
        raise _wrong(f"{where}.file_id", f"no files are stored here; {_SEND_IMAGES}")
    keys = [key for key in _IMAGE_KEYS if part.get(key) is not None]
    if not keys:
        raise _wrong(where, f"it has no picture; {_SEND_IMAGES}")
    if len(keys) > 1:
        raise _wrong(where, f"it gives one picture in several ways ({', '.join(keys)}); give one of them")
    key, source = keys[0], part[keys[0]]
    detail = part.get("detail")
    place = f"{where}.{key}"
    detail_place = f"{where}.detail"
    if isinstance(source, Mapping):
        if source.get("detail") is not None:
            detail, detail_place = source["detail"], f"{place}.detail"
        inner = "data" if source.get("type") == "base64" else "url"
        key, source = inner, source.get(inner)
    if not isinstance(source, str):
        raise _wrong(place, f"the picture is {_kind(source)}; it is an address or base64 as a string")
    if key in _BASE64_KEYS and not source.startswith("data:"):
        source = f"data:;base64,{source}"  # said to be base64, so it is taken for nothing else
    checked = _detail(detail, detail_place)  # before the picture, which may have to be fetched
    try:
        return ImagePart(load_image(source, policy=policy), checked)
    except MediaError as error:
        raise _wrong(place, str(error), code="invalid_image") from error


def _detail(detail: object, place: str) -> Detail:
    if detail is None:
        return "auto"
    if detail not in get_args(Detail):
        raise _wrong(place, f"it is {_shown(detail)}; detail is one of {', '.join(get_args(Detail))}")
    return cast(Detail, detail)


def _wrong(param: str, text: str, *, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"{param}: {text}", param=param, code=code)


def _kind(value: object) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "missing"
    names = {bool: "a boolean", str: "a string", dict: "an object", list: "a list"}
    return names.get(type(value), "a number")


def _shown(value: object) -> str:
    """A short value as it is, anything else by its kind: what a client sent may be megabytes."""
    return repr(value[:60]) if isinstance(value, str) else _kind(value)
