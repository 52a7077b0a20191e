"""Guesses for free: what came after the last few tokens when they came before (prompt lookup). No torch.

An answer that copies (read text, tables, JSON, what was said earlier) tends to go on as it did before. The guesses are
run beside the newest token, and kept as far as the model says the same, so an answer never changes. After Saxena 2023,
github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

SPAN = 3  # tokens that must agree with an earlier place
PAUSE_TOKENS = 8  # after a guess that was all wrong


class Lookup:
    """The places of every run of SPAN tokens of one sequence, and how well guesses went."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}
        self._known = SPAN  # tokens whose runs are entered
        self._length = 1
        self._resume = 0

    def guess(self, ids: Sequence[int], most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may come after `ids`; asking again gives the same."""
        for stop in range(self._known, len(ids)):
            self._next[tuple(ids[stop - SPAN : stop])] = stop
        self._known = max(self._known, len(ids))
        if len(ids) < max(SPAN, self._resume):
            return ()
        start = self._next.get(tuple(ids[-SPAN:]))
        return () if start is None else tuple(ids[start : start + min(most, self._length)])

    def learn(self, length: int, guessed: int, right: int) -> None:
        """Of `guessed` tokens the first `right` were right; the sequence has `length` tokens now."""
        if right == guessed:
            self._length *= 2
        elif right == 0:
            self._length = 1
            self._resume = length + PAUSE_TOKENS
