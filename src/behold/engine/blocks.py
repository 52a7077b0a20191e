"""Where each sequence's keys and values live: rows of one table, bounded in number and in memory. No torch.

The table is dense: every row has the same capacity, so it costs rows × capacity places. A sequence reserves what it can
come to need when it is admitted; thereby memory cannot run out in the middle of an answer. Pages and shared prefixes
can replace this class behind `fits`, `take` and `give_back`.
"""

from __future__ import annotations

import heapq


class RowTable:
    """Which rows are free, who reserved how much, and what shape the storage must be able to take.

    max_rows: rows at most. budget_tokens: rows × capacity at most.
    """

    def __init__(self, *, max_rows: int, budget_tokens: int) -> None:
        self.max_rows = max_rows
        self.budget_tokens = budget_tokens
        self._free = list(range(max_rows))  # a heap: the lowest row first keeps the rows in use close together
        self._reserved: dict[int, int] = {}

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_used(self) -> int:
        return len(self._reserved)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, capacity) that cover everything reserved now."""
        if not self._reserved:
            return 0, 0
        return max(self._reserved) + 1, max(self._reserved.values())

    def can_ever_fit(self, rows: int, reserve: int) -> bool:
        """Whether an empty table could take it."""
        return rows <= self.max_rows and rows * reserve <= self.budget_tokens

    def fits(self, rows: int, reserve: int) -> bool:
        """Whether `rows` rows of `reserve` places can be had now."""
        if rows > len(self._free):
            return False
        high, capacity = self.shape
        high = max(high, heapq.nsmallest(rows, self._free)[-1] + 1)
        return high * max(capacity, reserve) <= self.budget_tokens

    def take(self, rows: int, reserve: int) -> tuple[int, ...]:
        """The rows, lowest first. Call `fits` before."""
        assert self.fits(rows, reserve), "take() without fits()"
        slots = tuple(heapq.heappop(self._free) for _ in range(rows))
        self._reserved.update(dict.fromkeys(slots, reserve))
        return slots

    def give_back(self, slots: tuple[int, ...]) -> None:
        for slot in slots:
            del self._reserved[slot]
            heapq.heappush(self._free, slot)

    def check(self) -> None:
        """Our own bookkeeping: free + used = total, and no row is both."""
        assert len(self._free) + len(self._reserved) == self.max_rows, (self._free, self._reserved)
        assert set(self._free).isdisjoint(self._reserved), (self._free, self._reserved)
