"""What a pipeline is called with: chats, texts with pictures, lists and generators of them, and the options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

from behold.api.hf.generation import is_option
from behold.errors import OptionError

ReturnType = Literal["full", "new", "tensors"]


@dataclass(frozen=True, slots=True)
class ChatItem:
    """One conversation, as given."""

    messages: Sequence[Mapping[str, Any]]

    @property
    def is_started(self) -> bool:
        """Whether the last message is the assistant's, to be continued."""
        return bool(self.messages[-1]["role"] == "assistant")


@dataclass(frozen=True, slots=True)
class TextItem:
    """One text or several, with pictures in any form of `images=`."""

    text: str | Sequence[str]
    images: object = None

    @property
    def texts(self) -> list[str]:
        return [self.text] if isinstance(self.text, str) else list(self.text)


Item: TypeAlias = ChatItem | TextItem


@dataclass(frozen=True, slots=True)
class Job:
    """The items of one call. one: a single item, whose result is not wrapped in a list; lazy: read as results are."""

    items: Iterable[Item]
    one: bool = False
    lazy: bool = False


@dataclass(frozen=True, slots=True)
class CallOptions:
    """The keyword arguments of a pipeline or of one call of it; None is "not stated".

    generate: for `model.generate`. template: for the chat template, or the processor where there is no chat.
    """

    generate: Mapping[str, object] = field(default_factory=dict)
    template: Mapping[str, object] = field(default_factory=dict)
    processor: Mapping[str, object] = field(default_factory=dict)
    return_type: ReturnType | None = None
    continue_final_message: bool | None = None
    skip_special_tokens: bool | None = None
    clean_up_tokenization_spaces: bool | None = None
    timeout: float | None = None
    batch_size: int | None = None

    def over(self, base: CallOptions) -> CallOptions:
        """These options where they are stated, else those of `base`. A `generation_config` replaces base's options."""
        single = ("return_type", "continue_final_message", "skip_special_tokens", "clean_up_tokenization_spaces")
        chosen = {
            name: getattr(base, name) if getattr(self, name) is None else getattr(self, name)
            for name in (*single, "timeout", "batch_size")
        }
        return CallOptions(
            generate=self.generate if "generation_config" in self.generate else {**base.generate, **self.generate},
            template={**base.template, **self.template},
            processor={**base.processor, **self.processor},
            **chosen,
        )


def read_options(arguments: Mapping[str, Any]) -> CallOptions:
    """The keyword arguments of a pipeline, sorted.

    Raises:
        OptionError: two arguments that say the same thing, or exclude each other.
    """
    rest = dict(arguments)
    if rest.pop("num_workers", None):
        raise OptionError("num_workers is not supported: pictures are prepared in this process; leave it out.")
    generate = dict(rest.pop("generate_kwargs", None) or {})
    for name in [name for name in rest if is_option(name) or name in ("generation_config", "streamer")]:
        value = rest.pop(name)
        if value is not None and name in generate:
            raise OptionError(f"{name!r} is given twice, in generate_kwargs and as an argument; give it once.")
        if value is not None:
            generate[name] = value
    if (stop := rest.pop("stop_sequence", None)) is not None:
        generate["stop_strings"] = [stop] if isinstance(stop, str) else list(stop)
    return CallOptions(
        generate=generate,
        return_type=_return_type(rest),
        processor=dict(rest.pop("processor_kwargs", None) or {}),
        continue_final_message=rest.pop("continue_final_message", None),
        skip_special_tokens=rest.pop("skip_special_tokens", None),
        clean_up_tokenization_spaces=rest.pop("clean_up_tokenization_spaces", None),
        timeout=rest.pop("timeout", None),
        batch_size=_batch_size(rest.pop("batch_size", None)),
        template=rest,
    )


def read_inputs(images: object, text: object) -> Job:
    """The two input arguments as items.

    Chats may come as either argument. With pictures a list of texts is one item, as they are prepared together;
    without, each is an item of its own.

    Raises:
        OptionError: neither is given, both where pictures belong into the chat, or something unknown.
    """
    if images is None and text is None:
        raise OptionError("text and images are both missing; give text=messages, or images= and text=.")
    if text is None:
        # A pipeline's first argument is `images`, and may hold the whole input.
        images, text = None, images
    if images is not None:
        if _is_chat(text) or _is_chats(text):
            raise OptionError(
                'images cannot be given beside a chat; place them in it: {"type": "image", "image": picture}.'
            )
        return Job([_item({"text": text, "images": images})], one=True)
    if isinstance(text, str | Mapping) or _is_chat(text):
        return Job([_item(text)], one=True)
    if isinstance(text, list | tuple):
        return Job([_item(value) for value in text])
    if isinstance(text, Iterator):
        return _stream(text)
    if isinstance(text, Iterable):
        return Job(map(_item, text), lazy=True)
    if hasattr(text, "__getitem__") and hasattr(text, "__len__"):  # torch's map-style data sets
        return Job((_item(text[index]) for index in range(len(text))), lazy=True)
    raise OptionError(f"{type(text).__name__} is no input of a pipeline; give messages, a text, or images= and text=.")


def _stream(values: Iterator[object]) -> Job:
    """A generator of messages is one chat; any other gives items, read as results are asked for."""
    first = next(values, None)
    if first is None:
        return Job([])
    if _is_message(first):
        return Job([_item([first, *values])], one=True)

    def items() -> Iterator[Item]:
        yield _item(first)
        yield from map(_item, values)

    return Job(items(), lazy=True)


def _item(value: object) -> Item:
    if _is_chat(value):
        return ChatItem(cast("Sequence[Mapping[str, Any]]", value))
    if isinstance(value, str):
        return TextItem(value)
    if isinstance(value, Mapping):
        unknown = set(value) - {"text", "images", "image"}
        text = value.get("text")
        if unknown or not (isinstance(text, str) or _is_texts(text)):
            raise OptionError(
                f"An input with the keys {sorted(map(str, value))} is not understood; give "
                '{"text": …, "images": …}, or messages with "role" and "content".'
            )
        return TextItem(cast("str | Sequence[str]", text), value.get("images", value.get("image")))
    raise OptionError(f"{type(value).__name__} is no input of a pipeline; give messages, a text, or images= and text=.")


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and "role" in value and "content" in value


def _is_chat(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_message, value))


def _is_chats(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_chat, value))


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(text, str) for text in value)


def _return_type(rest: dict[str, Any]) -> ReturnType | None:
    full, tensors = rest.pop("return_full_text", None), rest.pop("return_tensors", None)
    text = rest.pop("return_text", None)
    if full is not None and tensors is not None:
        raise OptionError("return_full_text and return_tensors exclude each other; give one.")
    if text is False and not tensors:
        raise OptionError("return_text=False leaves nothing to return; use return_tensors=True for ids.")
    if tensors:
        return "tensors"
    return None if full is None else "full" if full else "new"


def _batch_size(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"batch_size={value!r} must be an integer of at least 1.")
    return value
