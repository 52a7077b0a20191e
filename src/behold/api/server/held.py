"""Memory of pictures whose answers wait or run: bounded, as a few hundred waiting requests could fill any machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from behold.api.server.errors import busy
from behold.types import Prompt


class HeldPictures:
    """Bytes of prepared pixels in all prompts that are being answered; several answers to one prompt count once."""

    def __init__(self, budget_bytes: int) -> None:
        self.n_bytes = 0
        self._budget_bytes = budget_bytes
        self._users: Counter[int] = Counter()

    @contextmanager
    def hold(self, prompt: Prompt) -> Iterator[None]:
        """Count the prompt's pictures in for as long as the context is open.

        Raises:
            ApiError: 429, they do not fit beside those of others. Alone any prompt fits.
        """
        key, size = id(prompt), sum(image.pixels.nbytes for image in prompt.images)
        if not self._users[key]:
            if self.n_bytes and self.n_bytes + size > self._budget_bytes:
                raise busy("the pictures of waiting requests fill the memory set aside; try again in a moment")
            self.n_bytes += size
        self._users[key] += 1
        try:
            yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self.n_bytes -= size
