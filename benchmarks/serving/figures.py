"""What is made of measured times: percentiles, a line through memory samples, one record for a whole load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest values, as numpy does; NaN where there is none."""
    return float(np.percentile(values, percent)) if values else float("nan")


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through (x, y) that fits best; 0 where there are fewer than two x."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    x, y = np.array(points).T
    return float(np.polyfit(x - x.mean(), y, 1)[0])


def intervals(times: Iterable[float]) -> list[float]:
    """Between each moment and the next."""
    return [later - earlier for earlier, later in pairwise(times)]


@dataclass(frozen=True)
class Exchange:
    """One request as its client saw it. Times are seconds of time.perf_counter.

    due: when it should have been sent; with a fixed arrival rate a client that is late makes its answer late.
    arrivals: of each piece of text.
    error: what went wrong, if anything did; `usage` and `text` may then be incomplete.
    """

    due: float
    ended: float
    arrivals: tuple[float, ...] = ()
    text: str = ""
    status: int = 0
    error: str | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def new_tokens(self) -> int:
        return int(self.usage.get("completion_tokens", 0))

    @property
    def first_token_s(self) -> float | None:
        return self.arrivals[0] - self.due if self.arrivals else None


@dataclass(frozen=True)
class Load:
    """A load of requests in figures; seconds and tokens."""

    n: int
    errors: int
    requests_per_s: float
    tokens_per_s: float
    first_token_s: dict[int, float]
    interval_s: dict[int, float]
    whole_s: dict[int, float]

    @classmethod
    def of(cls, exchanges: Sequence[Exchange]) -> Load:
        """Of at least one exchange. Those that failed count as errors, and in nothing else."""
        good = [exchange for exchange in exchanges if exchange.error is None]
        span = max(e.ended for e in exchanges) - min(e.due for e in exchanges)
        firsts = [e.first_token_s for e in good if e.first_token_s is not None]
        between = [gap for e in good for gap in intervals(e.arrivals)]
        return cls(
            n=len(exchanges),
            errors=len(exchanges) - len(good),
            requests_per_s=len(good) / span,
            tokens_per_s=sum(e.new_tokens for e in good) / span,
            first_token_s={p: percentile(firsts, p) for p in (50, 95, 99)},
            interval_s={p: percentile(between, p) for p in (50, 95)},
            whole_s={p: percentile([e.ended - e.due for e in good], p) for p in (50, 95, 99)},
        )


@dataclass(frozen=True)
class Bar:
    """A ratio of two times that is to be at most `limit` (None: it is only shown)."""

    what: str
    ours_s: float
    against: str
    theirs_s: float
    limit: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours_s / self.theirs_s if self.theirs_s else float("inf")

    @property
    def reached(self) -> bool:
        return self.limit is None or self.ratio <= self.limit
