"""What came of a case: as text for the terminal, and as a section of RESULTS.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from benchmarks.report import machine, package_version
from benchmarks.serving.figures import Bar, Load

HEAD_BARS = ("", "time", "against", "time", "ratio", "to reach")
LOAD_LINES = ("requests/s", "tokens/s", "first token", "between tokens", "whole answer", "errors", "peak memory")


@dataclass(frozen=True)
class Outcome:
    """One case's result.

    case: its name on the command line. command: how to repeat it. what: the work, in a sentence or two.
    loads: figures of each server by its name, with its peak memory in bytes. notes: further lines.
    failed: why the case failed as a whole, if it did.
    """

    case: str
    command: str
    what: str
    bars: Sequence[Bar] = ()
    loads: Mapping[str, tuple[Load, int]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    failed: str | None = None

    @property
    def good(self) -> bool:
        return self.failed is None and all(bar.reached for bar in self.bars)


def seconds(value: float) -> str:
    """Short times in milliseconds."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def bar_line(bar: Bar) -> list[str]:
    """The cells of one ratio."""
    wanted = "" if bar.limit is None else f"≤ {bar.limit:.2f}×: {'reached' if bar.reached else 'not reached'}"
    return [bar.what, seconds(bar.ours_s), bar.against, seconds(bar.theirs_s), f"{bar.ratio:.2f}×", wanted]


def load_column(load: Load, peak_bytes: int) -> list[str]:
    """One server's figures, in the order of LOAD_LINES."""
    return [
        f"{load.requests_per_s:.2f}",
        f"{load.tokens_per_s:.1f}",
        _percentiles(load.first_token_s),
        _percentiles(load.interval_s),
        _percentiles(load.whole_s),
        f"{load.errors} of {load.n}",
        f"{peak_bytes / 1e9:.2f} GB",
    ]


def _percentiles(values: Mapping[int, float]) -> str:
    return " · ".join(f"p{percent} {seconds(value)}" for percent, value in values.items())


def _tables(outcome: Outcome) -> list[list[list[str]]]:
    tables = []
    if outcome.bars:
        tables.append([list(HEAD_BARS), *map(bar_line, outcome.bars)])
    if outcome.loads:
        columns = [load_column(*figures) for figures in outcome.loads.values()]
        tables.append([["", *outcome.loads], *map(list, zip(LOAD_LINES, *columns, strict=True))])
    return tables


def show(outcome: Outcome, console: Console) -> None:
    """For the terminal."""
    console.print(f"[bold]{outcome.case}[/bold]  {outcome.what}", highlight=False)
    for head, *lines in _tables(outcome):
        table = Table(*head)
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for note in outcome.notes:
        console.print(f"  {note}", highlight=False)
    if outcome.failed:
        console.print(f"[red]failed: {outcome.failed}[/red]", highlight=False)


def section(outcome: Outcome, *, model: str, dtype: str, threads: int) -> str:
    """The Markdown section of one case."""
    title = f"## Serving, {outcome.case}: {model}, {dtype}, {threads} threads"
    packages = ", ".join(f"{name} {package_version(name)}" for name in ("torch", "transformers"))
    parts = [title, f"{outcome.what} {machine()}; {packages}; `{outcome.command}`."]
    for head, *lines in _tables(outcome):
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]))
    if outcome.notes:
        parts.append("\n".join(f"- {note}" for note in outcome.notes))
    if outcome.failed:
        parts.append(f"Failed: {outcome.failed}.")
    return "\n\n".join(parts) + "\n"
