"""How several texts would go on from one prompt, in ids: the ones the model would have to say, no others.

A text's ids are not those it has alone. Templates write "ASSISTANT:" as the prompt and "ASSISTANT: yes" as the turn,
and tokenizers join a text's beginning to what stands before it. So each text is rendered as the answer it would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from behold.chat.template import ChatTemplate, RenderedPrompt
from behold.processing.processor import Processor, is_started
from behold.types import Message, Prompt, TextPart


@dataclass(frozen=True, slots=True)
class WaysOn:
    """ids: one tuple a text. They follow a prompt without its last `n_cut` ids, which are others before these texts."""

    ids: tuple[tuple[int, ...], ...]
    n_cut: int = 0

    def shortened(self, prompt: Prompt) -> Prompt:
        """The prompt that `ids` follow."""
        kept = len(prompt.ids) - self.n_cut
        assert all(span.stop <= kept for span in prompt.spans), "a picture's ids never depend on the text behind them"
        return replace(prompt, ids=prompt.ids[:kept])


def ways_on(processor: Processor, messages: Sequence[Message], texts: Sequence[str]) -> WaysOn:
    """The ids of each text as the next turn, or where the last message is the assistant's, as how it goes on.

    messages: what `Processor.chat` has taken. Their pictures are not looked at. A text of which the template leaves
    nothing has no ids.
    """
    template, encode = _template(processor), processor.tokenizer.encode
    prompt = prompt_text(processor, messages)
    start = encode(prompt, add_special_tokens=False)
    whole = [encode(_said(template, messages, prompt, text), add_special_tokens=False) for text in texts]
    shared = min(_n_shared(start, ids) for ids in whole)
    return WaysOn(tuple(tuple(ids[shared:]) for ids in whole), len(start) - shared)


def prompt_text(processor: Processor, messages: Sequence[Message]) -> RenderedPrompt:
    """What decides the ids of the ways on: the prompt with one image token for each picture."""
    goes_on = is_started(messages)
    return _template(processor).render(messages, continue_final_message=goes_on, add_generation_prompt=not goes_on)


def _template(processor: Processor) -> ChatTemplate:
    assert processor.template is not None, "Processor.chat takes no messages without one"
    return processor.template


def _said(template: ChatTemplate, messages: Sequence[Message], prompt: RenderedPrompt, text: str) -> RenderedPrompt:
    """The prompt and the text behind it, as the template would write an answer of this text."""
    said = template.render(_answered(messages, text), continue_final_message=True)
    if said.startswith(prompt):
        return said
    # Some templates write into the prompt for an answer what they leave out of a given one, such as empty thoughts.
    return RenderedPrompt(prompt + text, (*prompt.literals, (len(prompt), len(prompt) + len(text))))


def _answered(messages: Sequence[Message], text: str) -> list[Message]:
    if not is_started(messages):
        return [*messages, Message("assistant", (TextPart(text),))]
    last = messages[-1]
    at = max(index for index, part in enumerate(last.parts) if isinstance(part, TextPart))
    begun = last.parts[at]
    assert isinstance(begun, TextPart)
    parts = (*last.parts[:at], TextPart(begun.text + text), *last.parts[at + 1 :])
    return [*messages[:-1], replace(last, parts=parts)]


def _n_shared(first: Sequence[int], second: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
