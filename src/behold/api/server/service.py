"""What every endpoint stands on: prompts made off the event loop, and answers within the server's limits."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from PIL import Image

from behold.api.server.errors import ApiError, api_error_of, busy, overdue, unavailable
from behold.api.server.held import HeldPictures
from behold.api.server.metrics import Metrics
from behold.engine.async_engine import AsyncEngine
from behold.types import Delta, ImagePart, Message, Prompt, SamplingParams, TextPart

if TYPE_CHECKING:
    from behold.api.server.settings import ServerSettings
    from behold.api.vlm import VLM

T = TypeVar("T")
Health = Literal["starting", "ok", "failed", "dead", "stopping"]
_logger = logging.getLogger("behold.server")


class Service:
    """One model behind one server. All methods are for the event loop's thread.

    model_id: the model's name in the API. created: when the server was made, in Unix seconds.
    draining: the server is about to stop and takes no new requests. in_flight: HTTP requests that were let in and are
    not answered in full.
    """

    def __init__(self, vlm: VLM, settings: ServerSettings) -> None:
        self.vlm = vlm
        self.settings = settings
        self.model_id = settings.served_model_name or _public_name(vlm.name)
        self.created = int(time.time())
        self.draining = False
        self.in_flight = 0
        self.metrics = Metrics(vlm.engine)
        vlm.engine.max_waiting = settings.max_waiting
        self._engine = AsyncEngine(vlm.engine)
        # A picture from a slow address holds its thread for seconds, in which others are to be decoded.
        n_threads = 8 if settings.allow_urls else min(4, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(max_workers=n_threads, thread_name_prefix="behold-prompt")
        self._in_threads = 0
        self._pictures = HeldPictures(settings.max_picture_bytes)
        self._aborted = False
        self._checked: Literal["starting", "ok", "failed"] = "starting"
        self._check: asyncio.Task[None] | None = None

    @property
    def context(self) -> int:
        """Tokens that prompt and answer can have together."""
        return self.vlm.model.config.text.max_position_embeddings

    @property
    def held_picture_bytes(self) -> int:
        """Prepared pixels of requests that wait or run."""
        return self._pictures.n_bytes

    async def start(self) -> None:
        """Begin to drive the engine, and find out meanwhile whether the model answers."""
        self._engine.start()
        self._check = asyncio.create_task(self._self_check())

    async def stop(self) -> None:
        """End all work at once; what still runs is cut off."""
        self.draining = True
        if self._check is not None:
            self._check.cancel()
        self.abort()
        await self._engine.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def abort(self) -> None:
        """Cut off every answer that runs: its client reads an error, 503."""
        self._aborted = True
        self.vlm.engine.cancel_all()

    @property
    def health(self) -> Health:
        """Whether the model has answered once (see `start`) and can still."""
        if self.draining:
            return "stopping"
        return self._checked if self._engine.alive else "dead"

    async def _self_check(self) -> None:
        """One token about one grey picture, made as any other."""
        try:
            picture = Image.new("RGB", (32, 32), (127, 127, 127))
            prompt = await self.prompt([Message("user", (ImagePart(picture), TextPart("?")))])
            async with aclosing(self._engine.stream(prompt, SamplingParams(max_new_tokens=1))) as deltas:
                async for _ in deltas:
                    pass
            self._checked = "ok"
        except Exception:
            self._checked = "failed"
            _logger.exception("the model cannot answer")

    def check_model(self, name: str | None) -> None:
        """Accept the loaded model's id, or its part after the last slash; None is the loaded model.

        Raises:
            ApiError: 404, any other name.
        """
        if name is None or name in (self.model_id, self.model_id.rpartition("/")[2]):
            return
        raise ApiError(
            404,
            f"the model {name[:200]!r} is not here: this server has {self.model_id!r}",
            param="model",
            code="model_not_found",
        )

    async def in_thread(self, work: Callable[[], T]) -> T:
        """`work()` in one of a few threads: for what takes CPU time, such as decoding pictures.

        Raises:
            ApiError: 429, as many wait for a thread as may wait at all. Else what `work` raises.
        """
        if self._in_threads >= self.settings.max_waiting:
            raise busy(f"{self._in_threads} requests are being read already; try again in a moment")
        self._in_threads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._in_threads -= 1

    async def prompt(
        self,
        messages: Sequence[Message] | Callable[[], Sequence[Message]],
        **template_variables: Any,  # noqa: ANN401 - the checkpoint's template decides what it takes
    ) -> Prompt:
        """A conversation as the model reads it. Messages with pictures are given by a function that makes them: decoded
        pictures are large, so they come to be in the thread that shrinks them, and wait nowhere.

        Raises:
            ApiError: 400, the template refuses, or pictures and places do not match; 429, too much waits. Else what
                `messages` raises.
        """

        def made() -> Prompt:
            found = messages() if callable(messages) else messages
            return self.vlm.processor.chat(found, **template_variables)

        try:
            return await self.in_thread(made)
        except Exception as error:
            raise api_error_of(error, "messages") from error

    async def run(self, prompt: Prompt, params: SamplingParams) -> AsyncGenerator[Delta, None]:
        """The increments of one answer. Closing the generator, or cancelling its task, stops the work within one step.

        Raises:
            ApiError: 400, an option or the length cannot be; 429, the queue or its memory is full; 504, the deadline is
                over; 503, the server stops or its engine is dead; 500, anything else.
        """
        if self._aborted:
            raise _stopping()
        if not self._engine.alive:
            raise unavailable("the engine of this server has died; it must be started anew", code="dead")
        with self._pictures.hold(prompt):
            async with aclosing(self._answer(prompt, params)) as deltas:
                async for delta in deltas:
                    yield delta

    async def _answer(self, prompt: Prompt, params: SamplingParams) -> AsyncGenerator[Delta, None]:
        """`run`, once it is let in."""
        watch = self.metrics.watch()
        deltas = self._engine.stream(prompt, params, deadline_s=self.settings.deadline_s)
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    if self._aborted and delta.finish_reason == "cancelled":
                        raise _stopping()
                    watch.saw(delta)
                    yield delta
        except TimeoutError as error:
            watch.broke("deadline")
            raise overdue(self.settings.deadline_s) from error
        except Exception as error:
            watch.broke("error")
            raise api_error_of(error) from error
        except BaseException:  # the consumer has closed it, or its task was cancelled
            watch.broke("cancelled")
            raise


def _stopping() -> ApiError:
    return unavailable("the server stops and cannot finish this answer", code="stopping")


def _public_name(name: str) -> str:
    """A hub id as it is; of a folder only its last part: where it lies is nobody's business."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() else name
