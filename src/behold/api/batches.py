"""Collections of any length through one engine: items are read and prepared ahead while it runs, results come in order.

    items ─ read one by one ─▶ prepared by a few threads ─▶ engine ─▶ results, each at its item's place

The caller's thread reads the items and drives the engine, so that Ctrl+C ends everything at once.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

from behold.engine.options import EngineOptions
from behold.errors import BeholdError, OptionError

if TYPE_CHECKING:
    from behold.engine.engine import Engine
    from behold.engine.request import Request

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

OnError: TypeAlias = Literal["raise", "keep"]

WORKERS = max(1, min(8, (os.cpu_count() or 2) // 2))
AHEAD = EngineOptions().max_rows + 2 * WORKERS
"""Items that are under way at most: every row of the engine is in use, and every thread has work and the next."""


def check_on_error(on_error: OnError) -> bool:
    """Whether errors are kept as results.

    Raises:
        OptionError: it is neither word.
    """
    if on_error not in ("raise", "keep"):
        raise OptionError(f'on_error={on_error!r} is not allowed: it is "raise" or "keep"')
    return on_error == "keep"


def run_all(
    engine: Engine,
    items: Iterable[Item],
    *,
    prepare: Callable[[Item], Prepared],
    start: Callable[[Prepared], Request],
    finish: Callable[[Request], Result],
    keep_errors: bool = False,
    on_end: Callable[[], object] = lambda: None,
) -> Generator[Result | BeholdError, None, None]:
    """The result of each item, in order. Closing the generator cancels what is under way.

    prepare: called by the threads. start: queues what they made in the engine. finish: makes the result of an ended
        request.
    keep_errors: a BeholdError that an item raises is its result; without it, it is raised at once and ends the others.
        Other errors, Ctrl+C included, are always raised.
    on_end: called whenever an item is over, in the order in which they end.
    """
    return _Run(engine, items, prepare, start, finish, keep_errors=keep_errors, on_end=on_end).results()


class _Run(Generic[Item, Prepared, Result]):
    """One collection on its way. Every item is in one of three places: preparing, running, ended."""

    def __init__(
        self,
        engine: Engine,
        items: Iterable[Item],
        prepare: Callable[[Item], Prepared],
        start: Callable[[Prepared], Request],
        finish: Callable[[Request], Result],
        *,
        keep_errors: bool,
        on_end: Callable[[], object],
    ) -> None:
        self._engine = engine
        self._items: Iterator[tuple[int, Item]] = enumerate(items)
        self._prepare, self._start, self._finish = prepare, start, finish
        self._keep_errors, self._on_end = keep_errors, on_end
        self._preparing: deque[tuple[int, Future[Prepared]]] = deque()
        self._running: dict[int, Request] = {}
        self._ended: dict[int, Result | BeholdError] = {}

    def results(self) -> Generator[Result | BeholdError, None, None]:
        number = 0
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="behold-prepare")
        try:
            while self._step(pool):
                while number in self._ended:
                    yield self._ended.pop(number)
                    number += 1
        finally:
            for request in self._running.values():
                self._engine.cancel(request)
            # Not waited for: a picture that is being fetched would hold up whoever pressed Ctrl+C.
            pool.shutdown(wait=False, cancel_futures=True)

    def _step(self, pool: ThreadPoolExecutor) -> bool:
        """Move on whatever can be moved on; False when all results have been taken."""
        self._read(pool)
        self._queue()
        if self._running:
            self._engine.step()
            self._collect()
        elif self._preparing and not self._ended:
            wait([self._preparing[0][1]])
        return bool(self._preparing or self._running or self._ended)

    def _read(self, pool: ThreadPoolExecutor) -> None:
        while len(self._preparing) + len(self._running) < AHEAD:
            following = next(self._items, None)
            if following is None:
                return
            number, item = following
            self._preparing.append((number, pool.submit(self._prepare, item)))

    def _queue(self) -> None:
        """Prepared items to the engine, in order: seeds that are drawn must not depend on which was ready first."""
        while self._preparing and self._preparing[0][1].done():
            number, future = self._preparing.popleft()
            try:
                self._running[number] = self._start(future.result())
            except BeholdError as error:
                self._fail(number, error)

    def _collect(self) -> None:
        for number in [number for number, request in self._running.items() if request.done]:
            request = self._running.pop(number)
            try:
                if request.error is not None:
                    raise request.error
                self._ended[number] = self._finish(request)
                self._on_end()
            except BeholdError as error:
                self._fail(number, error)

    def _fail(self, number: int, error: BeholdError) -> None:
        """The error, of the same kind and with all it carries, as the item's result, or the end of everything."""
        told = copy.copy(error)
        told.args = (f"item {number} of the batch (counted from 0): {error}",)
        if not self._keep_errors:
            raise told from error
        told.__cause__ = error
        self._ended[number] = told
        self._on_end()
