"""Several answers to one prompt while they are being written, and what they come to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from behold.api.server.errors import unavailable
from behold.api.server.logprobs import shown
from behold.api.server.sse import EventStream, unless_gone
from behold.types import Delta, TokenLogprob, Usage

# Requests that are refused are refused at once; so long a client waits for the status of one that is not.
BEGIN_S = 0.5


class Choices:
    """The increments of n answers, as they come. Closing it stops the work within one step; it must be closed."""

    def __init__(self, streams: Sequence[AsyncGenerator[Delta, None]]) -> None:
        self.n = len(streams)
        self._streams = tuple(streams)
        self._ahead: dict[asyncio.Future[Delta | None], int] = {}

    @classmethod
    async def begin(cls, streams: Sequence[AsyncGenerator[Delta, None]], *, within_s: float = BEGIN_S) -> Choices:
        """Submit all; back at the first increment, or after `within_s` while they wait for their turn.

        Raises:
            ApiError: one of them was refused; the others are closed.
        """
        choices = cls(streams)
        try:
            for index in range(choices.n):
                choices._ask(index)
            await asyncio.wait(choices._ahead, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            for task in choices._ahead:
                if task.done():
                    task.result()
        except BaseException:
            await choices.aclose()
            raise
        return choices

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """(index, increment) in the order in which they come; each answer's last one has a finish_reason.

        Raises:
            ApiError: an answer failed, or was ended before its end.
        """
        if self.n == 1:  # the usual case, without a task for each increment
            for task in list(self._ahead):
                first = await task
                self._ahead.clear()
                if first is not None:
                    yield 0, _unbroken(first)
            async for delta in self._streams[0]:
                yield 0, _unbroken(delta)
            return
        while self._ahead:
            done, _ = await asyncio.wait(self._ahead, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=self._ahead.__getitem__):
                index, newest = self._ahead.pop(task), task.result()
                if newest is not None:
                    self._ask(index)
                    yield index, _unbroken(newest)

    async def aclose(self) -> None:
        """Stop all that is not over. May be called more than once."""
        for task in self._ahead:
            task.cancel()
        await asyncio.gather(*self._ahead, return_exceptions=True)
        self._ahead.clear()
        for stream in self._streams:
            await stream.aclose()

    def _ask(self, index: int) -> None:
        self._ahead[asyncio.ensure_future(_next(self._streams[index]))] = index


async def _next(stream: AsyncGenerator[Delta, None]) -> Delta | None:
    """The next increment, None at the end."""
    async for delta in stream:
        return delta
    return None


def _unbroken(delta: Delta) -> Delta:
    if delta.finish_reason == "cancelled":  # not by the client: that closes the choices
        raise unavailable("the answer was broken off: the server is stopping", code="stopping")
    return delta


@dataclass(slots=True)
class Written:
    """One answer as far as it has come. last: its newest increment."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Delta = field(default_factory=Delta)

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.logprobs += shown(delta)
        self.last = delta


def cut_off(last: Delta) -> bool:
    """Whether the answer is not whole. Half a JSON text is not, also where a stop string ended it: clients that parse
    must be told."""
    return last.finish_reason == "length" or not last.satisfied


async def written(choices: Choices) -> list[Written]:
    """All answers, complete."""
    answers = [Written() for _ in range(choices.n)]
    async for index, delta in choices:
        answers[index].add(delta)
    return answers


async def respond(
    request: Request,
    choices: Choices,
    events: AsyncGenerator[bytes, None] | None,
    whole: Callable[[list[Written]], dict[str, Any]],
) -> Response:
    """The stream of `events`, or without them one body: what `whole` makes of all answers."""
    if events is not None:
        return EventStream(events, close=choices.aclose)
    async with aclosing(choices):
        return JSONResponse(whole(await unless_gone(request, written(choices))))


def total(answers: Sequence[Written]) -> Usage:
    """What all answers took together; the prompt they share is counted once."""
    usages = [answer.last.usage for answer in answers]
    first = usages[0]
    assert first is not None
    n_new = sum(usage.completion_tokens for usage in usages if usage is not None)
    return Usage(first.prompt_tokens, n_new, first.image_tokens, first.cached_tokens)
