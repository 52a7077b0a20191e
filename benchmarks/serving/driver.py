"""behold's engine driven in this process, as a server drives it: prompts are made in another thread while steps run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from behold.engine.engine import Engine
from behold.engine.request import Request
from behold.types import Message, Prompt, SamplingParams


@dataclass
class Track:
    """One answer on its way. `source`: messages, or a prompt that is there already.

    asked: when work on it began, in seconds of time.perf_counter. arrivals: of each token after that.
    """

    source: Sequence[Message] | Prompt
    params: SamplingParams
    asked: float = 0.0
    ended: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    prompt: Prompt | None = None
    request: Request | None = None

    @property
    def first_token_s(self) -> float:
        return self.arrivals[0] - self.asked


class Driver:
    """One engine and the answers that run in it."""

    def __init__(self, engine: Engine, chat: Callable[[Any], Prompt]) -> None:
        self.engine = engine
        self._chat = chat
        self._tracks: list[Track] = []
        self._futures: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(max_workers=1)

    def begin(self, track: Track) -> None:
        """Make its prompt and submit it, in the other thread."""
        track.asked = time.perf_counter()
        self._tracks.append(track)
        self._futures.append(self._pool.submit(self._submit, track))

    def _submit(self, track: Track) -> None:
        track.prompt = track.source if isinstance(track.source, Prompt) else self._chat(track.source)
        track.request = self.engine.submit(track.prompt, track.params)

    def until(self, ready: Callable[[], bool]) -> None:
        """Steps until `ready`. Raises what submitting or answering has raised."""
        while not ready():
            if not self.engine.step():
                time.sleep(0.0005)  # the prompts are still being made
            now = time.perf_counter()
            for future in [future for future in self._futures if future.done()]:
                self._futures.remove(future)
                future.result()
            for track in self._tracks:
                self._collect(track, now)

    def _collect(self, track: Track, now: float) -> None:
        if track.request is None or track.ended:
            return
        deltas, done = self.engine.take(track.request)
        for delta in deltas:
            track.ids += delta.ids
            track.arrivals += [now] * len(delta.ids)
            if delta.usage is not None:
                track.cached_tokens = delta.usage.cached_tokens
        if done:
            track.ended = now

    def answer(self, *tracks: Track) -> None:
        """All of them, together, to their ends."""
        for track in tracks:
            self.begin(track)
        self.until(lambda: all(track.ended for track in tracks))

    def close(self) -> None:
        """Drop what still runs."""
        self._pool.shutdown()
        self.engine.cancel_all()
