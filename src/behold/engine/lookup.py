"""Guesses for free: what came after the last few tokens when they came before (prompt lookup). No torch.

An answer that copies (read text, tables, JSON, what was said earlier) tends to go on as it did before. The guesses are
run beside the newest token, and kept as far as the model says the same, so an answer never changes. After Saxena 2023,
github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

SPAN = 3  # tokens that must agree with an earlier place
FEWEST = 3  # guesses worth making: a step with one costs nearly as much as a step with several
PAUSE_TOKENS = 8  # after a guess that was all wrong; twice as long after the next such


class Lookup:
    """The places of every run of SPAN tokens of one sequence, and when to guess again."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}
        self._known = SPAN  # tokens whose runs are entered
        self._pause = PAUSE_TOKENS
        self._resume = 0

    def guess(self, ids: Sequence[int], most: int) -> tuple[int, ...]:
        """FEWEST to `most` tokens that may come after `ids`, or none; asking again gives the same."""
        for stop in range(self._known, len(ids)):
            self._next[tuple(ids[stop - SPAN : stop])] = stop
        self._known = max(self._known, len(ids))
        if len(ids) < max(SPAN, self._resume) or most < FEWEST:
            return ()
        start = self._next.get(tuple(ids[-SPAN:]))
        if start is None:
            return ()
        # A place a few tokens back is a loop: it goes on with what it just guessed.
        found = [*ids[start : start + most]]
        while len(found) < most:
            found.append(found[len(found) - (len(ids) - start)])
        return tuple(found)

    def learn(self, length: int, right: int) -> None:
        """Of the last guesses the first `right` were right; the sequence has `length` tokens now."""
        if right:
            self._pause = PAUSE_TOKENS
        else:
            self._resume = length + self._pause
            self._pause *= 2
