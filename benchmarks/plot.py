"""The figures as bars, in an SVG written by hand: one panel a figure, one bar a row, floors and spreads as marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.figures import COLUMNS, Column, Measured, floor, medians
from benchmarks.report import Run

PANELS = ("first_token_s", "decode_tokens_per_s", "peak_bytes")
LABELS, BAR_ROOM, VALUES = 190, 430, 120  # widths: names, the longest bar, figures
LINE, THICK, GAP, HEAD, FOOT = 26, 16, 26, 30, 34
OURS, THEIRS, INK, FAINT, PAPER = "#2f6f8f", "#b9b9b3", "#24292f", "#6a737d", "#ffffff"


@dataclass(frozen=True)
class Mark:
    """One bar. low and high: the spread. floor: what the row could reach at best."""

    title: str
    ours: bool
    value: float
    low: float
    high: float
    text: str
    floor: float | None


def svg(run: Run) -> str:
    """The whole picture."""
    panels = [next(column for column in COLUMNS if column.key == key) for key in PANELS]
    height_each = HEAD + LINE * len(run.rows) + GAP
    width, height = LABELS + BAR_ROOM + VALUES, HEAD + height_each * len(panels) + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        _text(12, 21, run.title, weight="600"),
    ]
    for number, column in enumerate(panels):
        parts += _panel(column, _marks(run, column), HEAD + number * height_each)
    parts.append(
        _text(
            12, height - 12, "Medians; lines: smallest to largest; dashes: the floor of the row's own formats.", FAINT
        )
    )
    return "\n".join([*parts, "</svg>", ""])


def _marks(run: Run, column: Column) -> list[Mark]:
    rates = medians(run.rates)
    return [
        Mark(
            title=row.row.title,
            ours=row.row.ours,
            value=row.median(column.key),
            low=min(row.values(column.key)),
            high=max(row.values(column.key)),
            text=column.show(row.median(column.key)),
            floor=_floor(run, row, column.key, rates),
        )
        for row in run.rows
    ]


def _floor(run: Run, row: Measured, key: str, rates: dict[str, float]) -> float | None:
    if not rates or key not in PANELS[:2]:
        return None
    found = floor(row, run.work(row), rates)
    return found.first_token_s if key == PANELS[0] else found.decode_tokens_per_s


def _panel(column: Column, marks: Sequence[Mark], top: int) -> list[str]:
    # A floor far beyond every bar would make the bars too short to compare: it is left out.
    longest = max(mark.high for mark in marks)
    scale = BAR_ROOM / max([longest, *(m.floor for m in marks if m.floor is not None and m.floor < 1.6 * longest)])
    better = "more is better" if column.more_is_better else "less is better"
    parts = [_text(12, top + 20, column.title, weight="600"), _text(LABELS, top + 20, better, FAINT)]
    for number, mark in enumerate(marks):
        y = top + HEAD + LINE * number
        middle = y + THICK / 2
        parts.append(_text(12, y + 13, mark.title))
        fill = OURS if mark.ours else THEIRS
        parts.append(f'<rect x="{LABELS}" y="{y}" width="{scale * mark.value:.1f}" height="{THICK}" fill="{fill}"/>')
        if mark.low != mark.high:
            low, high = LABELS + scale * mark.low, LABELS + scale * mark.high
            parts.append(f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{INK}" stroke-width="1.5"/>')
        if mark.floor is not None and scale * mark.floor <= BAR_ROOM:
            x = LABELS + scale * mark.floor
            parts.append(
                f'<path d="M{x:.1f} {y - 3}V{y + THICK + 3}" stroke="{INK}" stroke-width="2" stroke-dasharray="3 2"/>'
            )
        parts.append(_text(LABELS + BAR_ROOM + 14, y + 13, mark.text))
    return parts


def _text(x: float, y: float, text: str, fill: str = INK, *, weight: str = "400") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-weight="{weight}">{escape(text)}</text>'
