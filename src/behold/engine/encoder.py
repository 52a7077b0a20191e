"""Pictures to embeddings in portions: whoever waits for a token waits for a layer of the tower, not for all of it."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from behold.device import give_back_memory
from behold.engine.image_cache import ImageCache
from behold.models.base import VisionLanguageModel
from behold.threads import SHARE
from behold.types import ImageInput

LARGE_PIXELS = 1 << 18  # numbers of a group's pictures: what a tower needs for so many is 100 MB and more


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Pictures that go through the tower together, and where that stands."""

    digests: frozenset[str]
    pictures: tuple[ImageInput, ...]
    pieces: Generator[None, None, list[Tensor]]


class Encoder:
    """Fills the image cache. One group of pictures at a time; max_tokens: their embeddings at most, but for a first."""

    def __init__(self, model: VisionLanguageModel, images: ImageCache, *, max_tokens: int) -> None:
        self._model = model
        self._images = images
        self._max_tokens = max_tokens
        self._job: _Job | None = None

    def run(self, wanted: Sequence[ImageInput], seconds: float) -> frozenset[str]:
        """Work on the pictures `wanted`, the most urgent first, for about so long; the digests worked on."""
        begin = time.perf_counter()
        touched: frozenset[str] = frozenset()
        longest = 0.0
        if self._job is not None and self._job.digests.isdisjoint(picture.digest for picture in wanted):
            self._job = None  # nobody waits for them any more
        while True:
            if self._job is None and not self._begin(wanted):
                return touched
            assert self._job is not None
            touched |= self._job.digests
            SHARE.reconsider()
            last = time.perf_counter()
            self._advance(self._job)
            now = time.perf_counter()
            longest = max(longest, now - last)
            if now - begin + longest > seconds:  # the next piece may take as long as any
                return touched

    def _begin(self, wanted: Sequence[ImageInput]) -> bool:
        """Form the next group; False where all are encoded."""
        group: list[ImageInput] = []
        for picture in wanted:
            if picture.digest in self._images:
                continue
            if group and sum(each.n_tokens for each in group) + picture.n_tokens > self._max_tokens:
                break
            group.append(picture)
        if group:
            digests = frozenset(picture.digest for picture in group)
            self._job = _Job(digests, tuple(group), self._model.encoding(group))
        return bool(group)

    def _advance(self, job: _Job) -> None:
        try:
            next(job.pieces)
        except StopIteration as done:
            for picture, rows in zip(job.pictures, done.value, strict=True):
                self._images.put(picture.digest, rows)
            self._job = None
            if self._model.device.type == "cpu" and sum(each.pixels.size for each in job.pictures) >= LARGE_PIXELS:
                # The prompt needs other sizes than the tower did, and the heap would keep both. It takes milliseconds.
                give_back_memory()
        except BaseException:
            self._job = None  # a generator that raised cannot go on; the next step begins anew
            raise
