"""A server for tests: the real application behind a real socket, in a thread of this process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from behold.api.server.service import Service
from behold.api.server.serving import Server, bind
from behold.api.server.settings import ServerSettings
from behold.api.vlm import VLM
from behold.engine.request import Request

WAIT_S = 60.0


def wait_for(what: Callable[[], Any], *, seconds: float = WAIT_S) -> Any:
    """The first true value of `what()`."""
    ends = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def running(vlm: VLM, **settings: Any) -> Iterator[tuple[httpx.Client, Service]]:
    """A client whose addresses begin at the server, and the server's insides."""
    chosen = ServerSettings(port=0, **settings)
    with bind(chosen) as sock:
        server = Server(vlm, chosen)
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            wait_for(lambda: server.started)
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False) as client:
                yield client, server.service
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
            assert not thread.is_alive()


@contextlib.contextmanager
def standing(vlm: VLM) -> Iterator[threading.Event]:
    """The model, whose answers stand still from their tenth token on: until one is cancelled, or the event is set."""
    engine, go_on = vlm.engine, threading.Event()
    step, cancel, begun = engine.step, engine.cancel, engine.stats().new_tokens

    def wait_and_step() -> bool:
        assert engine.stats().new_tokens < begun + 10 or go_on.wait(WAIT_S)
        return step()

    def cancel_and_go_on(request: Request) -> None:
        cancel(request)
        go_on.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "step", wait_and_step)
        patch.setattr(engine, "cancel", cancel_and_go_on)
        try:
            yield go_on
        finally:
            go_on.set()


def chat(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """A body of /v1/chat/completions."""
    return {"messages": [{"role": "user", "content": text}], **fields}


# An answer that is still being written for long enough to do something in the meantime.
LONG = {"max_tokens": 1500, "ignore_eos": True, "loop_stop": False, "stream": True}
