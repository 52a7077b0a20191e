"""What an engine has done, holds, and would need. Plain numbers, no torch."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the start, and what is held now.

    prompt_tokens were read, cached_tokens were there already; a prompt that could use a beginning is a prefix hit.
    tokens_per_s: new tokens of all answers, over the last seconds.
    """

    waiting: int
    running: int
    rows_free: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    prefix_hits: int
    prefix_misses: int
    kv_cache_bytes: int
    image_cache_bytes: int
    image_cache_hits: int
    image_cache_misses: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a request would cost, were it submitted now.

    cached_tokens: of its prompt, that need not be read. kv_bytes: keys and values it may come to need. image_bytes:
    embeddings of pictures that are not there yet. fits: whether it would run at once rather than wait.
    """

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    max_new_tokens: int
    kv_bytes: int
    image_bytes: int
    fits: bool


@dataclass(slots=True)
class Counters:
    """Counts that grow; kept under the engine's lock."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    _since: float = field(default_factory=time.perf_counter)
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    def step(self, *, prompt_tokens: int) -> None:
        self.steps += 1
        self.prompt_tokens += prompt_tokens

    def prompt(self, *, cached: int) -> None:
        """A prompt is read to its end; `cached` of its tokens were there already."""
        self.cached_tokens += cached
        self.prefix_hits += cached > 0
        self.prefix_misses += cached == 0

    def token(self, count: int = 1) -> None:
        self.new_tokens += count
        now = time.perf_counter()
        if self._recent and now - self._recent[-1][0] < WINDOW_S / 100:  # few entries, however fast the answers
            self._recent[-1] = (self._recent[-1][0], self._recent[-1][1] + count)
        else:
            self._recent.append((now, count))
        self._forget(now)

    def tokens_per_s(self) -> float:
        """New tokens a second over the last WINDOW_S seconds."""
        now = time.perf_counter()
        self._forget(now)
        return sum(count for _, count in self._recent) / min(WINDOW_S, max(now - self._since, 1e-3))

    @property
    def seconds_a_request(self) -> float:
        """Seconds since the start for each prompt that was read."""
        n_prompts = self.prefix_hits + self.prefix_misses
        return (time.perf_counter() - self._since) / n_prompts if n_prompts else 0.0

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - WINDOW_S:
            self._recent.popleft()
