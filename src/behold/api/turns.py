"""What a person gives to the short surface, pictures and questions or whole conversations, as messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

from behold.chat.media import load_image
from behold.chat.messages import attach_images, parse_messages
from behold.chat.policy import MediaPolicy
from behold.errors import ChatError
from behold.types import Detail, ImagePart, Message, TextPart

ImageLike: TypeAlias = Any
"""A path, an http(s) URL, a data: URI, base64, bytes, a file object, a PIL image, a numpy array or a torch tensor."""

Images: TypeAlias = ImageLike | Sequence[ImageLike] | None
"""One picture, several in a list or tuple, or none ([] or None)."""

Messages: TypeAlias = Sequence[Mapping[str, Any] | Message]
"""A conversation: messages with a role and content, as the Hugging Face and OpenAI conventions have them."""


Item: TypeAlias = "tuple[Images, str] | Messages"
"""One of many: (images, question), or a conversation."""


def user_message(
    images: Images, question: str, *, detail: Detail = "auto", policy: MediaPolicy | None = None
) -> Message:
    """One turn of a person: pictures first, each at this detail, then the question. policy: see chat.policy.

    Raises:
        MediaError: a picture cannot be read.
        ChatError: the question is no string.
    """
    if not isinstance(question, str):
        raise ChatError(f"the question is a {type(question).__name__}; it must be a string, after the picture or []")
    several = [] if images is None else images if isinstance(images, list | tuple) else [images]
    return Message(
        "user", (*(ImagePart(load_image(image, policy=policy), detail) for image in several), TextPart(question))
    )


def conversation(
    messages: Messages, images: Sequence[ImageLike] | None = None, *, policy: MediaPolicy | None = None
) -> list[Message]:
    """Messages in any accepted form, with every picture loaded and in its place."""
    load = partial(load_image, policy=policy)
    return attach_images(parse_messages(messages, load=load), [load(image) for image in images or ()])


def messages_of(item: Item, *, policy: MediaPolicy | None = None) -> list[Message]:
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], str):
        return [user_message(item[0], item[1], policy=policy)]
    if isinstance(item, Sequence) and not isinstance(item, str) and all(_is_message(part) for part in item):
        return conversation(cast("Messages", item), policy=policy)
    raise ChatError(f"{item!r:.80} is neither (images, question) nor a list of messages")


def _is_message(part: object) -> bool:
    return isinstance(part, Mapping | Message)
