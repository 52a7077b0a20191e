"""Medians of what was measured, as a table for the terminal and as a section of RESULTS.md."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.checkpoint import Blueprint

HEADING = "# Results"
INTRODUCTION = """\
One section per machine and work, written by `python -m benchmarks.run --write`; every figure in the README comes from
here. Each row is a process of its own; rows take turns, run by run; the figures are medians, with the smallest and
largest in brackets. The code is the same for every row (`AutoProcessor`, `AutoModelForImageTextToText`, `generate`
with a streamer that notes the time): *first token* counts from the decoded picture and the messages to the first token,
preprocessing included; *decode* is the rate of the tokens after it. Every run has another picture, so nothing is
answered from a cache. *Import* and *load* are timed in fresh processes, with the files in the operating system's cache.
*Peak* is the most resident memory of the process, up to the end of loading and of all runs. The last columns say how
many times better: above 1 is faster, or smaller. Sections that begin with *Serving* are written by
`python -m benchmarks.serve --write`; each says what was done, and their ratios are of times: below 1 is faster.
"""


@dataclass
class Measured:
    """Everything measured for one row."""

    name: str
    loads: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def values(self, key: str) -> list[float]:
        records = self.answers if self.answers and key in self.answers[0] else self.loads
        return [record[key] for record in records]


@dataclass(frozen=True)
class Column:
    title: str
    key: str
    show: Callable[[float], str]
    more_is_better: bool = False


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


COLUMNS = (
    Column("first token", "first_token_s", _seconds),
    Column("decode", "decode_tokens_per_s", lambda value: f"{value:.2f} tok/s", more_is_better=True),
    Column("peak, loading", "load_bytes", _gigabytes),
    Column("peak, running", "peak_bytes", _gigabytes),
    Column("load", "load_s", _seconds),
    Column("import", "import_s", _seconds),
)


def _cell(row: Measured, column: Column, *, spread: bool) -> str:
    values = row.values(column.key)
    if not spread:
        return column.show(median(values))
    low, high = column.show(min(values)).split()[0], column.show(max(values)).split()[0]
    return f"{column.show(median(values))} ({low}–{high})"


def _ratio(row: Measured, base: Measured, column: Column) -> str:
    """How many times better than the base row: above 1 is better, whatever the unit."""
    ours, theirs = median(row.values(column.key)), median(base.values(column.key))
    return f"{ours / theirs if column.more_is_better else theirs / ours:.2f}×"


def _head(rows: list[Measured]) -> list[str]:
    return ["", *(row.name for row in rows), *(f"{row.name} / {rows[0].name}" for row in rows[1:])]


def _lines(rows: list[Measured], *, spread: bool) -> list[list[str]]:
    lines = [["weights in memory", *(row.loads[0]["dtype"] for row in rows), *([""] * (len(rows) - 1))]]
    for column in COLUMNS:
        ratios = [_ratio(row, rows[0], column) for row in rows[1:]]
        lines.append([column.title, *(_cell(row, column, spread=spread) for row in rows), *ratios])
    return lines


def table(rows: list[Measured]) -> Table:
    """Medians and ratios for the terminal; the first row is what the others are compared with."""
    result = Table(*_head(rows))
    for line in _lines(rows, spread=False):
        result.add_row(*line)
    return result


def machine() -> str:
    """The processor's name and its number of cores."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def section(plan: Blueprint, rows: list[Measured], options: Mapping[str, Any]) -> str:
    """The Markdown section of one run."""
    prompt = rows[0].answers[0]["prompt_tokens"]
    title = f"## {plan.name}, {options['dtype']}, {options['device']}, {options['threads']} threads"
    packages = ", ".join(f"{name} {package_version(name)}" for name in ("torch", "transformers"))
    what = (
        f"{machine()}; {packages}; {plan.n_parameters / 1e6:.0f} M random parameters ({plan.dtype} on disk); "
        f"{prompt} prompt tokens with one picture, {options['decode']} tokens after the first; {options['runs']} runs."
    )
    head = _head(rows)
    body = ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *_lines(rows, spread=True)]]
    return "\n".join([title, "", what, "", *body, ""])


def write_results(path: Path, text: str) -> None:
    """Put a section into the file, in place of the one with the same heading."""
    old = path.read_text("utf-8") if path.exists() else f"{HEADING}\n\n{INTRODUCTION}"
    title = text.split("\n", 1)[0]
    sections = re.split(r"(?m)^(?=## )", old)
    kept = [part.rstrip() for part in sections if part.split("\n", 1)[0] != title]
    path.write_text("\n\n".join([*kept, text.rstrip()]) + "\n", "utf-8")
