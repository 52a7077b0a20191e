"""What was measured of each row, and how a figure is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.floor import Work
from benchmarks.rows import Formats, Row


@dataclass
class Measured:
    """Everything measured for one row."""

    row: Row
    loads: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def values(self, key: str) -> list[float]:
        """Of one column."""
        records = self.answers if self.answers and key in self.answers[0] else self.loads
        return [record[key] for record in records]

    def median(self, key: str) -> float:
        return median(self.values(key))

    @property
    def formats(self) -> Formats:
        return self.row.held(self.loads[0]["dtype"])

    @property
    def n_decoded(self) -> int:
        """Tokens after the first one, of each answer."""
        return len(self.answers[0]["ids"]) - 1


@dataclass(frozen=True)
class Column:
    """A figure of every row; `key` is its name in a worker's records."""

    title: str
    key: str
    show: Callable[[float], str]
    more_is_better: bool = False


def seconds(value: float) -> str:
    return f"{value:.2f} s"


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


def speed(value: float) -> str:
    return f"{value:.2f} tok/s"


COLUMNS = (
    Column("first token", "first_token_s", seconds),
    Column("decode", "decode_tokens_per_s", speed, more_is_better=True),
    Column("peak, running", "peak_bytes", gigabytes),
    Column("peak, loading", "load_bytes", gigabytes),
    Column("load", "load_s", seconds),
    Column("import", "import_s", seconds),
)


def cell(measured: Measured, column: Column, *, spread: bool) -> str:
    """The median; with `spread` also the smallest and the largest, where they differ."""
    values = measured.values(column.key)
    low, middle, high = (column.show(value) for value in (min(values), median(values), max(values)))
    return f"{middle} ({low.split()[0]}–{high.split()[0]})" if spread and low != high else middle


@dataclass(frozen=True)
class Floor:
    """What a row could reach at best, with its own formats, at the rates measured beside it; shares are of that.

    None where a rate is not known.
    """

    first_token_s: float | None
    first_token_share: float | None
    token_bytes: float
    decode_tokens_per_s: float
    decode_share: float


def floor(measured: Measured, work: Work, rates: dict[str, float]) -> Floor:
    """The floors of one row; `work` is that of its answers."""
    first = work.first_token_s(measured.formats, rates)
    most = work.decode_tokens_per_s(measured.formats, rates)
    return Floor(
        first_token_s=first,
        first_token_share=None if first is None else first / measured.median("first_token_s"),
        token_bytes=work.token_bytes(measured.formats),
        decode_tokens_per_s=most,
        decode_share=measured.median("decode_tokens_per_s") / most,
    )


def medians(probes: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each rate over all rounds."""
    return {name: median(probe[name] for probe in probes) for name in probes[0]} if probes else {}
