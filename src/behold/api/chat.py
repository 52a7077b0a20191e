"""A conversation that keeps its history."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

from behold.api import structured
from behold.api.turns import Images, user_message
from behold.errors import ChatError
from behold.types import Answer, Message, TextPart

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from behold.api.sampling import SamplingOptions
    from behold.api.stream import AnswerStream
    from behold.api.structured import M
    from behold.api.vlm import VLM, Schema


class Chat:
    """Turns of one conversation with one model. `messages` is the history, oldest first.

    A turn enters the history when it is answered. One that fails leaves no trace; one that is stopped early stays,
    with the answer as far as it came, unless nothing had come yet. Pictures stay in the history, and the engine keeps
    what the vision tower made of them, so a later turn does not encode them again.
    """

    def __init__(self, vlm: VLM, *, system: str | None = None) -> None:
        self._vlm = vlm
        self._system = [Message("system", (TextPart(system),))] if system else []
        self._open: weakref.ref[AnswerStream] | None = None
        self.messages: list[Message] = [*self._system]

    @overload
    def say(
        self,
        images_or_words: Images,
        words: str | None = None,
        /,
        *,
        schema: type[M],
        **sampling: Unpack[SamplingOptions],
    ) -> M: ...

    @overload
    def say(
        self,
        images_or_words: Images,
        words: str | None = None,
        /,
        *,
        schema: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Answer: ...

    def say(
        self,
        images_or_words: Images,
        words: str | None = None,
        /,
        *,
        schema: Schema = None,
        **sampling: Unpack[SamplingOptions],
    ) -> object:
        """Say something, with or without pictures: `say("And the colour?")`, `say("photo.jpg", "What is this?")`."""
        turn = self._turn(images_or_words, words)
        params = self._vlm.params({**sampling, "schema": schema})
        answer = self._vlm.complete([*self.messages, turn], params, schema)
        self._keep(turn, answer)
        return structured.value_of(answer, schema)

    def stream(
        self,
        images_or_words: Images,
        words: str | None = None,
        /,
        *,
        schema: Schema = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AnswerStream:
        """Like `say`, piece by piece. The turn enters the history when the stream is finished or closed."""
        turn = self._turn(images_or_words, words)
        params = self._vlm.params({**sampling, "schema": schema})
        stream = self._vlm.open_stream(
            [*self.messages, turn], params, lambda answer: self._keep(turn, answer), schema=schema
        )
        self._open = weakref.ref(stream)
        return stream

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self._refuse_while_streaming()
        self.messages = [*self._system]

    def _turn(self, images_or_words: Images, words: str | None) -> Message:
        self._refuse_while_streaming()
        if words is not None:
            return user_message(images_or_words, words, policy=self._vlm.media)
        if not isinstance(images_or_words, str):
            kind = type(images_or_words).__name__
            raise ChatError(f"say(…) was given a {kind} and no words; say something about it: say(picture, words)")
        return user_message([], images_or_words)

    def _refuse_while_streaming(self) -> None:
        stream = self._open() if self._open else None
        if stream is not None and not stream.done:
            raise ChatError("the previous answer is still being streamed: read it to its end, or close() the stream")

    def _keep(self, turn: Message, answer: Answer) -> None:
        if answer.finish_reason != "cancelled" or answer:
            self.messages += [turn, Message("assistant", (TextPart(str(answer)),))]
