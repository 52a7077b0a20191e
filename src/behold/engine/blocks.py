"""Where each sequence's keys and values live: rows, bounded in number and in memory, and finished ones kept. No torch.

A row grows on its own, up to what its sequence reserved when it was admitted; thereby memory cannot run out in the
middle of an answer. A finished sequence's row may be kept for those that begin alike; kept rows fill what memory
running ones leave, and go, least recently used first, when it is wanted.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from behold.engine.prefix import common

FIRST_CAPACITY = 64
KEPT_A_ROW = 4  # kept rows for each that may run: every prompt is compared with all of them


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A finished row: the symbols (T,) its T places hold keys and values of, and the places it takes in memory."""

    symbols: np.ndarray
    places: int


class RowTable:
    """Which rows there are, who reserved how much, and what finished ones hold. Row numbers are never used twice.

    max_rows: rows of running sequences at most. budget_tokens: places of all rows at most. keep_tokens: places of kept
    rows at most.
    """

    def __init__(self, *, max_rows: int, budget_tokens: int, keep_tokens: int = 0) -> None:
        self.max_rows = max_rows
        self.budget_tokens = budget_tokens
        self.keep_tokens = min(keep_tokens, budget_tokens)
        self.kept: OrderedDict[int, Kept] = OrderedDict()  # the least recently used first
        self._reserved: dict[int, int] = {}
        self._numbers = itertools.count()

    @property
    def n_free(self) -> int:
        return self.max_rows - len(self._reserved)

    @property
    def n_used(self) -> int:
        return len(self._reserved)

    @property
    def rows(self) -> set[int]:
        """Every row that holds something or may come to."""
        return {*self._reserved, *self.kept}

    @property
    def running_places(self) -> int:
        return sum(self._reserved.values())

    def reserved(self, row: int) -> int:
        """Places that a running row may come to need."""
        return self._reserved[row]

    def can_ever_fit(self, rows: int, reserve: int) -> bool:
        """Whether an empty table could take it."""
        return rows <= self.max_rows and rows * reserve <= self.budget_tokens

    def fits(self, rows: int, reserve: int) -> bool:
        """Whether `rows` rows of `reserve` places can be had now, by letting kept rows go if need be."""
        return rows <= self.n_free and self.running_places + rows * reserve <= self.budget_tokens

    def take(self, rows: int, reserve: int) -> tuple[int, ...]:
        """New rows. Call `fits` before."""
        assert self.fits(rows, reserve), "take() without fits()"
        taken = tuple(itertools.islice(self._numbers, rows))
        self._reserved.update(dict.fromkeys(taken, reserve))
        self._shrink()
        return taken

    def take_over(self, row: int, reserve: int) -> None:
        """A kept row runs again, for a sequence that begins as it does. Call `fits(1, reserve)` before."""
        assert self.fits(1, reserve), "take_over() without fits()"
        del self.kept[row]
        self._reserved[row] = reserve
        self._shrink()

    def give_back(self, rows: tuple[int, ...]) -> None:
        for row in rows:
            del self._reserved[row]

    def keep(self, row: int, symbols: np.ndarray) -> None:
        """A running row is finished and stays as it is, holding keys and values of `symbols` (T,).

        What another kept row holds as well is not kept twice.
        """
        places = capacity(len(symbols), self._reserved.pop(row))
        if len(symbols) == 0 or places > self.keep_tokens:
            return
        for other, held in list(self.kept.items()):
            alike = common(symbols, held.symbols)
            if alike == len(symbols):
                self.kept.move_to_end(other)
                return
            if alike == len(held.symbols):
                del self.kept[other]
        self.kept[row] = Kept(symbols, places)
        self._shrink()

    def touch(self, row: int) -> None:
        """A kept row was of use."""
        if row in self.kept:
            self.kept.move_to_end(row)

    def forget_kept(self) -> None:
        """Let all kept rows go."""
        self.kept.clear()

    def check(self) -> None:
        """Our own bookkeeping: within bounds, and no row is both running and kept."""
        assert self.n_free >= 0, self._reserved
        assert self._reserved.keys().isdisjoint(self.kept), (self._reserved, self.kept)
        assert self._kept_places <= self._room_to_keep, (self._kept_places, self._room_to_keep)

    @property
    def _kept_places(self) -> int:
        return sum(kept.places for kept in self.kept.values())

    @property
    def _room_to_keep(self) -> int:
        return min(self.keep_tokens, self.budget_tokens - self.running_places)

    def _shrink(self) -> None:
        most = KEPT_A_ROW * self.max_rows
        while self.kept and (self._kept_places > self._room_to_keep or len(self.kept) > most):
            self.kept.popitem(last=False)


def capacity(needed: int, most: int | None = None) -> int:
    """Places that a row of `needed` tokens takes: doubled as it grows, but for that never more than `most`."""
    doubled = max(FIRST_CAPACITY, 1 << (needed - 1).bit_length())
    return doubled if most is None else min(doubled, max(needed, most))
