"""What is to be reached, as data: a row's figure beside another's of the same run, or beside a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.figures import COLUMNS, Measured

LLAVA, IDEFICS2 = "llava-interleave-qwen-0.5b", "HuggingFaceM4--idefics2-8b"


@dataclass(frozen=True)
class Bar:
    """key: a column's. against: a row, whose figure times `limit` is the bar; None: `limit` is the bar itself.

    The bar is a ceiling, or where more is better, a floor.
    """

    shapes: str
    row: str
    key: str
    against: str | None
    limit: float


FIRST, SPEED, PEAK = "first_token_s", "decode_tokens_per_s", "peak_bytes"
BARS = (
    Bar(LLAVA, "behold:int8", FIRST, "llama.cpp:q8_0", 0.42),
    Bar(LLAVA, "behold:int8", SPEED, "llama.cpp:q8_0", 2.4),
    Bar(LLAVA, "behold:int8", FIRST, "transformers", 0.48),
    Bar(LLAVA, "behold:int8", FIRST, "transformers:auto", 0.09),
    Bar(LLAVA, "behold:int8", FIRST, "transformers:int8", 0.38),
    Bar(LLAVA, "behold:int8", PEAK, None, 1.5e9),
    Bar(LLAVA, "behold:int4", FIRST, "llama.cpp:q4_0", 0.42),
    Bar(LLAVA, "behold:int4", SPEED, "llama.cpp:q4_0", 3.0),
    Bar(LLAVA, "behold:int4", FIRST, "transformers", 0.45),
    Bar(LLAVA, "behold:int4", PEAK, None, 1.1e9),
    Bar(IDEFICS2, "behold:int8", FIRST, None, 45.0),
    Bar(IDEFICS2, "behold:int8", SPEED, None, 2.5),
    Bar(IDEFICS2, "behold:int8", PEAK, None, 14e9),
    Bar(IDEFICS2, "behold:int4", SPEED, None, 4.0),
    Bar(IDEFICS2, "behold:int4", PEAK, None, 9e9),
)
HEAD = ("row", "figure", "ours", "against", "theirs", "ratio", "to reach")


def lines(shapes: str, rows: Sequence[Measured], bars: Sequence[Bar] = BARS) -> list[list[str]]:
    """A line for each bar of these shapes whose rows were measured, under HEAD."""
    measured = {row.row.name: row for row in rows}
    return [
        _line(bar, measured)
        for bar in bars
        if bar.shapes == shapes and bar.row in measured and (bar.against is None or bar.against in measured)
    ]


def _line(bar: Bar, measured: dict[str, Measured]) -> list[str]:
    column = next(column for column in COLUMNS if column.key == bar.key)
    ours = measured[bar.row].median(bar.key)
    theirs = None if bar.against is None else measured[bar.against].median(bar.key)
    found = ours if theirs is None else ours / theirs
    reached = found >= bar.limit if column.more_is_better else found <= bar.limit
    limit = column.show(bar.limit) if theirs is None else f"{bar.limit:.2f}×"
    return [
        measured[bar.row].row.title,
        column.title,
        column.show(ours),
        "" if bar.against is None else measured[bar.against].row.title,
        "" if theirs is None else column.show(theirs),
        "" if theirs is None else f"{found:.2f}×",
        f"{'≥' if column.more_is_better else '≤'} {limit}: {'reached' if reached else 'not reached'}",
    ]
