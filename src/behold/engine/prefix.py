"""Which sequences begin alike: token ids, with every place of a picture told apart by the picture's digest. No torch.

Keys and values of a token depend on nothing but the tokens and pictures up to it, so those of a common beginning can
be used again. Two pictures behind the same placeholder tokens have different symbols and never share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from behold.types import ImageSpan, Prompt

WORTH_WAITING_FOR = 16
"""Tokens: a sequence waits for another that is computing at least so many that it could use."""


@dataclass(frozen=True, slots=True)
class Source:
    """A row to begin from: `ready` of its symbols are computed."""

    row: int
    symbols: np.ndarray
    ready: int


@dataclass(frozen=True, slots=True)
class Match:
    """The longest beginning to be had: `length` tokens of `row` (None: none). `coming` > length: another sequence is
    computing so many, which is worth waiting for."""

    row: int | None = None
    length: int = 0
    coming: int = 0

    @property
    def worth_waiting(self) -> bool:
        return self.coming >= self.length + WORTH_WAITING_FOR


def symbols(prompt: Prompt) -> np.ndarray:
    """(T,) int64: ids as they are; a picture's places negative numbers made of its digest and the place in it."""
    found = np.array(prompt.ids, dtype=np.int64)
    for span in prompt.spans:
        digest = hashlib.blake2b(prompt.images[span.image].digest.encode(), digest_size=8).digest()
        base = int.from_bytes(digest, "little") >> 2  # room for the places below 2 ** 63
        found[span.start : span.stop] = -1 - base - np.arange(span.length)
    return found


def extended(prompt_symbols: np.ndarray, answer: Sequence[int], length: int) -> np.ndarray:
    """The first `length` symbols of a prompt and its answer."""
    return np.concatenate([prompt_symbols, np.array(answer, dtype=np.int64)])[:length]


def common(a: np.ndarray, b: np.ndarray) -> int:
    """How many symbols two sequences begin with alike."""
    length = min(len(a), len(b))
    if length == 0 or a[0] != b[0]:
        return 0
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def best(wanted: np.ndarray, sources: Iterable[Source], spans: Sequence[ImageSpan]) -> Match:
    """What `wanted` (T,) can begin with. Its last token is always computed, for something must be chosen from it."""
    row, length, coming = None, 0, 0
    for source in sources:
        alike = min(common(wanted, source.symbols), len(wanted) - 1)
        if alike <= length:
            continue
        coming = max(coming, whole(alike, spans))
        ready = whole(min(alike, source.ready), spans)
        if ready > length:
            row, length = source.row, ready
    return Match(row, length, max(coming, length))


def whole(length: int, spans: Sequence[ImageSpan]) -> int:
    """A beginning that does not end inside a span that attends both ways: its keys and values depend on its end."""
    return next((span.start for span in spans if span.bidirectional and span.start < length < span.stop), length)
