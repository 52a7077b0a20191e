"""The keyword arguments of a processor's calls: which there are, and which of a chat's belong to its template."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from jinja2 import meta

from behold.api.hf.call import refuse_foreign
from behold.chat import sandbox
from behold.chat.literals import RenderedPrompt
from behold.errors import OptionError

TEXT_OPTIONS = (
    "padding",
    "truncation",
    "max_length",
    "pad_to_multiple_of",
    "padding_side",
    "add_special_tokens",
    "return_attention_mask",
)
"""Options of a processor's call that are about the text."""

_GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")
_FOREIGN = ("videos", "audio", "audios", "videos_kwargs", "audio_kwargs", "text_pair", "text_target")


def flattened(options: Mapping[str, object]) -> dict[str, object]:
    """The options of a call, groups such as text_kwargs spread out.

    Raises:
        OptionError: one is given twice, or asks for other media than text and pictures.
    """
    flat = {name: value for name, value in options.items() if name not in (*_GROUPS, *_FOREIGN)}
    for name in _FOREIGN:
        if options.get(name):
            raise OptionError(f"{name} is not supported: texts and pictures are; leave it out.")
    for group in _GROUPS:
        for name, value in cast("Mapping[str, object]", options.get(group) or {}).items():
            if name in flat:
                raise OptionError(f"{name!r} is given twice, in {group} and as an argument; give it once.")
            flat[name] = value
    return flat


def divided(
    keywords: Mapping[str, object], template: str, settings: Collection[str]
) -> tuple[dict[str, object], dict[str, object]]:
    """(variables of the chat template, options of the processor's call) among the keywords of apply_chat_template.

    template: its Jinja source, which says what variables it reads. settings: names the image processor knows.

    Raises:
        OptionError: a keyword that neither knows.
    """
    known = meta.find_undeclared_variables(sandbox.environment().parse(template))
    variables: dict[str, object] = {}
    arguments: dict[str, object] = {}
    for name, value in keywords.items():
        if name in (*TEXT_OPTIONS, *_GROUPS, *_FOREIGN, "images") or name in settings:
            arguments[name] = value
        elif name in ("return_assistant_tokens_mask", "load_audio_from_video"):
            refuse_foreign(name, value)
        elif name in known:
            variables[name] = value
        elif name != "sanitize_control_tokens":  # here, text in messages never becomes control tokens anyway
            raise OptionError(
                f"{name!r} is neither a variable of the chat template nor an option of the processor; "
                f"the template reads {', '.join(sorted(known))}."
            )
    return variables, arguments


def places_in(text: str, image_token: str) -> int:
    """How many pictures a text has places for; in a RenderedPrompt what people typed does not count."""
    literals = text.literals if isinstance(text, RenderedPrompt) else ()
    return text.count(image_token) - sum(text[start:stop].count(image_token) for start, stop in literals)
