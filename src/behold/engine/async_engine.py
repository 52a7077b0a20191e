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

    @property
    def alive(self) -> bool:
        """Whether anybody drives; False before `start`, after `stop`, and should the thread have died."""
        return self._thread.is_alive()

    async def stream(
        self, prompt: Prompt, params: SamplingParams, *, deadline_s: float | None = None
    ) -> AsyncGenerator[Delta, None]:
        """The increments of one request. Closing the generator, or cancelling its task, stops the work within one step.

        Raises as `Engine.submit` does, at the first `anext`.

        Raises:
            TimeoutError: the answer was not complete `deadline_s` seconds after the first `anext`; its work stops.
        """
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        late = False

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(news.set)

        def expire() -> None:
            nonlocal late
            late = True
            news.set()

        if params.constraint is not None:
            # The first schema reads the vocabulary, which takes seconds for a large one; others answer meanwhile.
            await asyncio.to_thread(self.engine.prepare, params)
        request = self.engine.submit(prompt, params, on_news=tell)
        self._work.set()
        # One timer for all waits: a timer, or a task, for each token would cost more than the token on small models.
        timer = None if deadline_s is None else loop.call_later(deadline_s, expire)
        try:
            done = False
            while not done:
                await news.wait()
                news.clear()
                deltas, done = self.engine.take(request)
                for delta in deltas:
                    yield delta
                if late and not done:
                    raise TimeoutError(f"not complete after {deadline_s:g} s")
        finally:
            if timer is not None:
                timer.cancel()
            self.engine.cancel(request)

    def _drive(self) -> None:
        while not self._closed:
            # An error ends the requests it belongs to, and reaches their consumers; the thread goes on.
            if not self.engine.step():
                self._work.wait()
                self._work.clear()
