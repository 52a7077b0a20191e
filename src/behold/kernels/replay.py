"""Calls of kernels that are written down once and made again as one call, without Python in between.

A step of one token makes a hundred calls of kernels that take 0.05 to 0.3 ms each; what Python does between them, after
gigabytes of weights have gone through the caches, took a fifth of the time.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

from behold.kernels import native

WORDS = 23  # as many arguments as a call may have


class Tape:
    """Calls in their order. All that they read and write stays where it is, and alive, as long as this."""

    def __init__(self, calls: Sequence[native.Call]) -> None:
        assert native.LIBRARY is not None
        words: list[int] = []
        for call in calls:
            kernel = ctypes.cast(getattr(native.LIBRARY, f"{call.name}_words"), ctypes.c_void_p).value
            given = [_word(*pair) for pair in zip(native.letters(call.name), call.arguments, strict=True)]
            words += [kernel or 0, *given, *[0] * (WORDS - len(given))]
        self._words = (ctypes.c_int64 * len(words))(*words)
        self._count, self._kept, self._replay = len(calls), calls, native.LIBRARY.bh_replay

    def play(self) -> None:
        """Make the calls again."""
        self._replay(self._words, self._count)


def _word(letter: str, value: native.Argument) -> int:
    """An argument as 64 bits."""
    if letter == "d":
        return int(struct.unpack("q", struct.pack("d", value))[0])
    if isinstance(value, ctypes.Array):
        return ctypes.addressof(value)
    return int(value or 0)
