"""A checkpoint's chat template: messages to the text of a prompt, in Jinja's sandbox."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2

from behold.chat import sandbox
from behold.chat.literals import Masker, RenderedPrompt, texts_of
from behold.errors import ChatError
from behold.types import Message, TextPart

__all__ = ["ChatTemplate", "RenderedPrompt"]

_PROBE = "behold-probe"


class ChatTemplate:
    """One template, compiled once. Rendering holds no state, so threads may share it.

    source: Jinja text. special_tokens: what the template may name (bos_token …). control_tokens: all texts with a
    special meaning to the tokenizer, special_tokens included; typed by a person they stay text. image_token: written
    in front of the text for each picture where a template knows only text (messages as strings).

    Raises:
        ChatError: the source is not valid Jinja.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        control_tokens: Iterable[str] = (),
        image_token: str | None = None,
    ) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self.image_token = image_token
        self._control = frozenset(control_tokens) | frozenset(self.special_tokens.values())
        try:
            with warnings.catch_warnings():
                # Published templates write "\s" where they mean a backslash; Python's warning would say nothing new.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._template = sandbox.compiled(source)
        except jinja2.TemplateError as error:
            raise ChatError(f"the chat template is not valid Jinja ({error}).") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **variables: Any,  # noqa: ANN401 - the template decides what it takes (tools, documents, enable_thinking …)
    ) -> RenderedPrompt:
        """The prompt's text, with one image token for each picture, and the ranges that must stay text.

        continue_final_message: stop right after the last message's text, so that the model goes on with it.

        Raises:
            ChatError: the template refuses these messages or fails, or there is no final text to continue.
        """
        if continue_final_message and add_generation_prompt:
            raise ChatError(
                "continue_final_message and add_generation_prompt exclude each other: the first goes on with the last "
                "message, the second starts a new one."
            )
        if not messages:
            raise ChatError("the conversation is empty; give at least one message.")
        typed = [[message.role, message.text, message.extra] for message in messages]
        masker = Masker(self._control, [self.source, *texts_of(typed), *texts_of(variables)])
        dicts = [self._shown(message, masker) for message in messages]
        mark = _mark_end(dicts, masker) if continue_final_message else ""
        # A caller that passes bos_token or the like means the token; every other value may hold typed text.
        given = {key: value if key in self.special_tokens else masker.mask(value) for key, value in variables.items()}
        text = self._run(dicts, add_generation_prompt, given)
        return masker.unmask(_cut_at(text, mark) if mark else text)

    def _shown(self, message: Message, masker: Masker) -> dict[str, Any]:
        """A message as the template sees it: no pictures, only their places."""
        parts = [
            {"type": "text", "text": masker.mask(part.text)} if isinstance(part, TextPart) else {"type": "image"}
            for part in message.parts
        ]
        shown = {"role": masker.mask(message.role), **masker.mask(message.extra)}
        if self._wants_parts:
            return {**shown, "content": parts}
        n_images = sum(part["type"] == "image" for part in parts)
        if n_images and not self.image_token:
            raise ChatError(
                f"the chat template has no place for pictures, and {n_images} came in a {message.role} message; "
                "give a template whose content is a list of parts."
            )
        text = "".join(part.get("text", "") for part in parts)
        return {**shown, "content": f"{self.image_token}\n" * n_images + text}

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether content must be a list of parts, found by trying: templates that want text choke on a list, or
        print it as one. Where neither form shows the text, a list is what multimodal templates are written for."""
        for content, answer in (([{"type": "text", "text": _PROBE}], True), (_PROBE, False)):
            try:
                text = self._run([{"role": "user", "content": content}], False, {})
            except ChatError:
                continue
            if _PROBE in text and "'type'" not in text and '"type"' not in text:
                return answer
        return True

    def _run(self, messages: list[dict[str, Any]], add_generation_prompt: bool, variables: Mapping[str, Any]) -> str:
        given = {"tools": None, "documents": None, **self.special_tokens, **variables}
        given |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return sandbox.render(self._template, given)
        except jinja2.TemplateError as error:
            raise ChatError(f"the chat template refuses these messages: {error}") from error
        except RecursionError as error:
            raise ChatError("the chat template nests too deeply for these messages.") from error
        except Exception as error:  # a template is a program: it can fail in any way a program can
            raise ChatError(
                f"the chat template fails on these messages ({type(error).__name__}: {error}); "
                "see which roles and parts it is written for."
            ) from error


def _mark_end(messages: list[dict[str, Any]], masker: Masker) -> str:
    """Put a private character and a space behind the last message's last text; returns both.

    The space tells afterwards whether the template trims what follows the text.
    """
    mark = masker.character("") + " "
    content = messages[-1]["content"]
    if isinstance(content, str):
        messages[-1]["content"] = content + mark
        return mark
    for part in reversed(content):
        if part["type"] == "text":
            part["text"] += mark
            return mark
    raise ChatError("the final message has no text to continue; end it with a text part, or do not continue it.")


def _cut_at(text: str, mark: str) -> str:
    """The rendered text up to the mark; where the template trimmed the space behind it, trailing space goes too."""
    place = text.rfind(mark[0])
    if place < 0:
        raise ChatError("the chat template leaves out the final message's text, so it cannot be continued.")
    kept = text[:place]
    return kept if text[place : place + len(mark)] == mark else kept.rstrip()
