"""Server-sent events: how they are written, and a response that stops its work as soon as the client is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from behold.api.server.errors import ApiError
from behold.api.server.schemas import CLOSED_REQUEST

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
# Proxies give up on a connection that is silent for 30 to 60 seconds.
KEEP_ALIVE_S = 10.0
# No line breaks in the format, but in the eyes of clients that split text with their language's own idea of a line.
_BREAKS = {ord(letter): f"\\u{ord(letter):04x}" for letter in "\x85\u2028\u2029"}


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event as it goes over the wire."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_BREAKS)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


class EventStream(Response):
    """Events as they come. Headers go out at once, a comment whenever nothing has come for `keep_alive_s` seconds.

    close: called at the end, however it comes about, also when no event was ever asked for.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], Awaitable[object]],
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self.status_code = 200
        self.background = None
        # X-Accel-Buffering: nginx would collect the events otherwise.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._close = close
        self._keep_alive_s = keep_alive_s
        self._sending = False
        self._n_sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # One task for all events: a task for each would cost more than making and sending it.
        work = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        both: set[asyncio.Future[Any]] = {work, gone}
        try:
            while not work.done() and not gone.done():
                before = self._n_sent
                await asyncio.wait(both, timeout=self._keep_alive_s, return_when=asyncio.FIRST_COMPLETED)
                if not (work.done() or gone.done() or self._sending) and self._n_sent == before:
                    await self._send(send, {"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
            if work.done():
                work.result()
        except OSError:  # the client is gone, says the server that cannot send
            pass
        finally:
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            try:
                await self._events.aclose()
            finally:
                await self._close()

    async def _send_all(self, send: Send) -> None:
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self._events:
            await self._send(send, {"type": "http.response.body", "body": data, "more_body": True})
        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, message: Message) -> None:
        self._sending = True
        await send(message)
        self._sending = False
        self._n_sent += 1


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled should the client go away. The request's body must have been read.

    Raises:
        ApiError: 499, the client went away. Else what `work` raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    both: set[asyncio.Future[Any]] = {task, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(CLOSED_REQUEST, "the client has closed the connection")
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
