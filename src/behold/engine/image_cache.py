"""Image embeddings by digest: least recently used go first, under a byte budget; those in use stay."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class ImageCacheStats:
    hits: int = 0
    misses: int = 0


class ImageCache:
    """digest → (n_tokens, D). What is pinned is never dropped, even above the budget; it counts nevertheless."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.stats = ImageCacheStats()
        self.n_bytes = 0
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self._pins: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    def __getitem__(self, digest: str) -> Tensor:
        self._entries.move_to_end(digest)
        return self._entries[digest]

    def put(self, digest: str, embeddings: Tensor) -> None:
        """Keep embeddings; older ones that nobody uses make room."""
        if digest in self._entries:
            return
        # A view into a whole batch would keep that batch alive, uncounted.
        own = embeddings.contiguous()
        if own.untyped_storage().nbytes() > own.numel() * own.element_size():
            own = own.clone()
        self._entries[digest] = own
        self.n_bytes += _bytes(own)
        self._shrink(newest=digest)

    def pin(self, digest: str) -> None:
        """Somebody needs it until unpin(); pins are counted. May come before put()."""
        self._pins[digest] += 1

    def pinned(self, digest: str) -> bool:
        """Whether somebody needs it, be it there or not yet."""
        return digest in self._pins

    def unpin(self, digest: str) -> None:
        self._pins[digest] -= 1
        assert self._pins[digest] >= 0, digest
        if not self._pins[digest]:
            del self._pins[digest]
        self._shrink()

    def clear(self) -> None:
        """Drop everything that is not in use."""
        for digest in [digest for digest in self._entries if digest not in self._pins]:
            self._drop(digest)

    def check(self) -> None:
        """Our own bookkeeping."""
        assert self.n_bytes == sum(_bytes(entry) for entry in self._entries.values()), self.n_bytes
        assert self._pins or self.n_bytes <= self.budget_bytes, (self.n_bytes, self.budget_bytes)

    def _shrink(self, newest: str | None = None) -> None:
        for digest in list(self._entries):
            if self.n_bytes <= self.budget_bytes:
                return
            if digest not in self._pins and digest != newest:
                self._drop(digest)
        if newest is not None and self.n_bytes > self.budget_bytes and newest not in self._pins:
            self._drop(newest)

    def _drop(self, digest: str) -> None:
        self.n_bytes -= _bytes(self._entries.pop(digest))


def _bytes(embeddings: Tensor) -> int:
    return embeddings.numel() * embeddings.element_size()
