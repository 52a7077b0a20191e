"""The engine for asyncio: one thread drives steps while there is work, and deltas come to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator

from behold.engine.engine import Engine
from behold.types import Delta, Prompt, SamplingParams


class AsyncEngine:
    """A thin wrapper without queue or policy of its own. `engine` stays usable from other threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._work = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._drive, name="behold-engine", daemon=True)

    def start(self) -> None:
        """Begin to drive; once."""
        self._thread.start()

    async def stop(self) -> None:
        """Let the step that is under way end, and drive no more. Requests that are still open are cancelled."""
        self._closed = True
        self._work.set()
        await asyncio.to_thread(self._thread.join)
        self.engine.cancel_all()

    async def stream(self, prompt: Prompt, params: SamplingParams) -> AsyncGenerator[Delta, None]:
        """The increments of one request. Closing the generator, or cancelling its task, stops the work within one step.

        Raises as `Engine.submit` does, at the first `anext`.
        """
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(news.set)

        request = self.engine.submit(prompt, params, on_news=tell)
        self._work.set()
        try:
            done = False
            while not done:
                await news.wait()
                news.clear()
                deltas, done = self.engine.take(request)
                for delta in deltas:
                    yield delta
        finally:
            self.engine.cancel(request)

    def _drive(self) -> None:
        while not self._closed:
            # An error ends the requests it belongs to, and reaches their consumers; the thread goes on.
            if not self.engine.step():
                self._work.wait()
                self._work.clear()
