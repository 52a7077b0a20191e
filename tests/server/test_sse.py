"""Events on the wire, and that work stops at once when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

import pytest
from starlette.requests import Request

from behold.api.server.choices import Choices, written
from behold.api.server.errors import ApiError
from behold.api.server.sse import KEEP_ALIVE, EventStream, event, unless_gone
from behold.types import Delta, Usage

Message = MutableMapping[str, Any]
SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}


class Client:
    """The other end of a connection, for one response. It goes away when `gone` is set, or `sends` returns True."""

    def __init__(self, leaves_after: Callable[[Message], bool] = lambda _: False) -> None:
        self.gone = asyncio.Event()
        self.sent: list[Message] = []
        self._leaves_after = leaves_after

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if self._leaves_after(message):
            self.gone.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Work:
    """A stream of deltas that knows whether it was closed. It waits at the end of `texts` if it is told to."""

    def __init__(self, *texts: str, waits: bool = False) -> None:
        self.texts, self.waits, self.closed = texts, waits, False

    async def stream(self) -> AsyncGenerator[Delta, None]:
        try:
            for text in self.texts:
                yield Delta(ids=(1,), text=text)
            if self.waits:
                await asyncio.Event().wait()
            yield Delta(finish_reason="stop", usage=Usage(3, len(self.texts)), ended_by="end")
        finally:
            self.closed = True


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        before = len(asyncio.all_tasks())
        await asyncio.wait_for(main(), 20)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) <= before + 1  # nothing is left running

    asyncio.run(bounded())


async def events_of(choices: Choices) -> AsyncGenerator[bytes, None]:
    async for index, delta in choices:
        yield event({"index": index, "text": delta.text})


def test_an_event_is_one_line_whatever_is_in_it() -> None:
    text = "a\nb\r\u2028c\u2029\x85 “é” 🙂"
    written_event = event({"text": text}, "name")
    name, data, *rest = written_event.decode().splitlines()  # the widest idea of a line there is
    assert (name, rest) == ("event: name", [""])
    assert json.loads(data.removeprefix("data: ")) == {"text": text}
    assert "é" in data


def test_a_stream_is_sent_whole_and_closed() -> None:
    async def main() -> None:
        client, work = Client(), Work("a", "b")
        choices = await Choices.begin([work.stream()])
        await EventStream(events_of(choices), close=choices.aclose)(SCOPE, client.receive, client.send)
        assert client.sent[0]["status"] == 200
        assert dict(client.sent[0]["headers"])[b"x-accel-buffering"] == b"no"
        assert client.body.count(b"data: ") == 3
        assert [message["more_body"] for message in client.sent[1:]] == [True, True, True, False]
        assert work.closed

    run(main)


@pytest.mark.parametrize("leaves_at", ["http.response.start", "http.response.body"])
def test_work_stops_when_the_client_is_gone(leaves_at: str) -> None:
    async def main() -> None:
        client = Client(lambda message: message["type"] == leaves_at)
        works = [Work("a", waits=True), Work(waits=True), Work(*("long " * 1000).split())]
        choices = await Choices.begin([work.stream() for work in works])
        await EventStream(events_of(choices), close=choices.aclose)(SCOPE, client.receive, client.send)
        assert all(work.closed for work in works)
        assert len(client.sent) < 100

    run(main)


def test_work_stops_when_the_server_cannot_send() -> None:
    async def main() -> None:
        async def send(_: Message) -> None:
            raise OSError("broken pipe")

        work = Work("a", waits=True)
        choices = await Choices.begin([work.stream()])
        await EventStream(events_of(choices), close=choices.aclose)(SCOPE, Client().receive, send)
        assert work.closed

    run(main)


def test_work_stops_when_the_task_is_cancelled() -> None:
    async def main() -> None:
        client, work = Client(), Work("a", waits=True)
        choices = await Choices.begin([work.stream()])
        response = EventStream(events_of(choices), close=choices.aclose)
        task = asyncio.ensure_future(response(SCOPE, client.receive, client.send))
        while b'"a"' not in client.body:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.closed

    run(main)


def test_silence_is_filled_with_comments() -> None:
    async def main() -> None:
        client = Client()
        choices = await Choices.begin([Work(waits=True).stream()], within_s=0.01)
        response = EventStream(events_of(choices), close=choices.aclose, keep_alive_s=0.02)
        task = asyncio.ensure_future(response(SCOPE, client.receive, client.send))
        while client.body.count(KEEP_ALIVE) < 3:
            await asyncio.sleep(0.01)
        client.gone.set()
        await task
        assert client.body == KEEP_ALIVE * client.body.count(KEEP_ALIVE)

    run(main)


def test_beginning_does_not_wait_for_the_first_token() -> None:
    async def main() -> None:
        work = Work(waits=True)
        choices = await Choices.begin([work.stream()], within_s=0.05)
        assert not work.closed
        await choices.aclose()
        await choices.aclose()
        assert work.closed

    run(main)


def test_an_answer_nobody_waits_for_is_given_up() -> None:
    async def main() -> None:
        client, work = Client(), Work("a", waits=True)
        choices = await Choices.begin([work.stream()])
        asyncio.get_running_loop().call_later(0.05, client.gone.set)
        with pytest.raises(ApiError) as caught:
            await unless_gone(Request(SCOPE, client.receive), written(choices))
        assert caught.value.status == 499
        await choices.aclose()
        assert work.closed

    run(main)


def test_an_answer_that_is_waited_for_is_given() -> None:
    async def main() -> None:
        choices = await Choices.begin([Work("a", "b").stream(), Work("c").stream()])
        answers = await unless_gone(Request(SCOPE, Client().receive), written(choices))
        assert [answer.text for answer in answers] == ["ab", "c"]
        await choices.aclose()

    run(main)
