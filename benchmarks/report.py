"""Medians of what was measured, as tables for the terminal and as a section of RESULTS.md."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from rich.table import Table

from behold.device import cpu_flags
from benchmarks import bars
from benchmarks.checkpoint import Blueprint
from benchmarks.figures import COLUMNS, Measured, cell, floor, medians
from benchmarks.floor import Work

HEADING = "# Results"
INTRODUCTION = """\
One section per work, written by `python -m benchmarks.run --write`; every figure in the README comes from here. Each
row is a process of its own; rows take turns, run by run, and another one begins each time; the figures are medians,
with the smallest and largest in brackets. The code is the same for all rows but llama.cpp's (`AutoProcessor`,
`AutoModelForImageTextToText`, `generate` with a streamer that notes the time). *First token* counts from the decoded
picture and the messages to the first token, preprocessing included; *decode* is the rate of the tokens after it, one a
step. Every run has another picture, so nothing is answered from a cache. *Import* and *load* are timed in fresh
processes, with the files in the operating system's cache. *Peak* is the most resident memory of the process, files that
are mapped into it included, up to the end of loading and of all runs. *Floor* is what a row's own formats would allow:
operations over the rate of multiplications in registers, bytes over the bandwidth of memory, both measured between the
runs (`benchmarks/probe.c`). Sections that begin with *Serving* are written by `python -m benchmarks.serve --write`;
each says what was done, and their ratios are of times: below 1 is faster.
"""
PACKAGES = ("torch", "transformers", "optimum-quanto", "llama-cpp-python")


@dataclass
class Run:
    """One run of the benchmark. rates: of each probe of the machine. notes: what the reader has to know besides."""

    plan: Blueprint
    rows: list[Measured]
    threads: int
    device: str
    runs: int
    rates: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.plan.name}, {self.device}{', AVX-512' if self.wide else ''}, {self.threads} threads"

    @property
    def wide(self) -> bool:
        """Whether it was on a CPU whose instructions are wider than that for which the bars were set."""
        return self.device == "cpu" and "avx512_vnni" in cpu_flags()

    @property
    def prompt_tokens(self) -> int:
        return int(self.rows[0].answers[0]["prompt_tokens"])

    @property
    def n_decoded(self) -> int:
        return max(row.n_decoded for row in self.rows)

    @property
    def what(self) -> str:
        """The work, the machine and the packages, in a sentence."""
        return (
            f"{machine()}; {', '.join(f'{name} {package_version(name)}' for name in PACKAGES)}; "
            f"{self.plan.n_parameters / 1e6:.0f} M random parameters ({self.plan.dtype} on disk); "
            f"{self.prompt_tokens} prompt tokens with one picture, {self.n_decoded} tokens after the first; "
            f"{self.runs} {'run' if self.runs == 1 else 'runs'}."
        )

    def work(self, row: Measured) -> Work:
        """What its answers cost at least."""
        vision = self.plan.files["config.json"]["vision_config"]
        sizes = next(
            (each.answers[0]["picture_sizes"] for each in self.rows if "picture_sizes" in each.answers[0]), None
        )
        sizes = sizes or [(vision["image_size"],) * 2]
        return Work.of(
            self.plan.tensors,
            patches=[n_patches(size, vision["patch_size"]) for size in sizes],
            prompt_tokens=self.prompt_tokens,
            decode_tokens=row.n_decoded,
        )


def n_patches(size: Sequence[int], patch: int) -> int:
    """Patches of a picture of this (height, width)."""
    return (size[0] // patch) * (size[1] // patch)


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


# --- tables: a head and lines of cells -------------------------------------------------------------------------------


def figures_table(run: Run, *, spread: bool) -> list[list[str]]:
    """What every row took."""
    lines = [["", "weights", *(column.title for column in COLUMNS)]]
    for row in run.rows:
        cells = [cell(row, column, spread=spread) for column in COLUMNS]
        lines.append([row.row.title, row.row.quantize or row.loads[0]["dtype"], *cells])
    return lines


def floors_table(run: Run) -> list[list[str]]:
    """How near every row came to what is possible; empty where the machine was not measured."""
    rates = medians(run.rates)
    if not rates:
        return []
    lines = [["", "first token at best", "share", "bytes a token", "decode at best", "share"]]
    for row in run.rows:
        found = floor(row, run.work(row), rates)
        known = found.first_token_s is not None and found.first_token_share is not None
        lines.append(
            [
                row.row.title,
                f"{found.first_token_s:.2f} s" if known else "–",
                f"{100 * (found.first_token_share or 0):.0f} %" if known else "–",
                f"{found.token_bytes / 1e6:.0f} MB",
                f"{found.decode_tokens_per_s:.1f} tok/s",
                f"{100 * found.decode_share:.0f} %",
            ]
        )
    return lines


def rates_line(run: Run) -> str:
    """What the floors were computed with."""
    rates, work = medians(run.rates), run.work(run.rows[0])
    names = {"float_gop_s": "float32", "int8_gop_s": "int8", "int4_gop_s": "int8 with 16-bit sums"}
    if run.wide:
        names = {"float_gop_s": "float32", "bfloat16_gop_s": "bfloat16", "int8_gop_s": "int8"}
    parts = [f"{names[name]} {rates[name]:.0f}" for name in names if name in rates]
    lows = [min(rate["read_gb_s"] for rate in run.rates), max(rate["read_gb_s"] for rate in run.rates)]
    return (
        f"Measured between the runs: reading memory {rates['read_gb_s']:.1f} GB/s ({lows[0]:.1f}–{lows[1]:.1f}); "
        f"10⁹ operations a second in registers: {', '.join(parts)}. Up to the first token the work is "
        f"{work.operations / 1e9:.0f}·10⁹ operations, {(work.vision_linear + work.vision_attention) / 1e9:.0f} of them "
        "for the picture; attention counts as float32, as do quanto's weights, and 16-bit ones without units for them."
    )


def bars_table(run: Run) -> list[list[str]]:
    """What is to be reached; empty where nothing is set for these shapes and rows."""
    lines = bars.lines(run.plan.name, run.rows)
    return [list(bars.HEAD), *lines] if lines else []


def remarks(run: Run) -> list[str]:
    """What must be known of the machine to read the bars."""
    if not (run.wide and bars_table(run)):
        return []
    return [
        "what is to be reached was set for a CPU with AVX2 and nothing wider: with AVX-512 and VNNI llama.cpp and "
        "behold multiply integers faster, and with units for bfloat16 transformers, as installed, is ten times as fast"
    ]


def agreements(rows: Sequence[Measured]) -> list[str]:
    """How far the answers of each row are those of the first: with the same weights, whether the work is the same.

    Random weights may say one token over and over, so that it is told how many different ones there are.
    """
    lines = []
    for row in rows[1:]:
        pairs = [(a["ids"], b["ids"]) for a, b in zip(rows[0].answers, row.answers, strict=False)]
        same = median(common(ours, theirs) for ours, theirs in pairs)
        different = len({token for answer in row.answers for token in answer["ids"]})
        lines.append(
            f"{row.row.title}: {same:.0f} of {1 + row.n_decoded} tokens ({different} different) as {rows[0].row.title}"
        )
    return lines


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the equal beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# --- as text ---------------------------------------------------------------------------------------------------------


def terminal_tables(run: Run) -> list[Table]:
    """Medians for the terminal."""
    tables = []
    for head, *lines in filter(None, (figures_table(run, spread=False), floors_table(run), bars_table(run))):
        table = Table(*head)
        for line in lines:
            table.add_row(*line)
        tables.append(table)
    return tables


def section(run: Run, *, plot: str | None = None) -> str:
    """The Markdown section of one run; `plot` is the picture's file name."""
    parts = [f"## {run.title}", run.what]
    if plot:
        parts.append(f"![First token, decode and peak memory of each row]({plot})")
    parts.append(markdown(figures_table(run, spread=True)))
    if floors := floors_table(run):
        parts += [rates_line(run), markdown(floors)]
    if reach := bars_table(run):
        parts.append(markdown(reach))
    notes = [*run.notes, *remarks(run), *(f"the same answers? {line}" for line in agreements(run.rows))]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def markdown(lines: list[list[str]]) -> str:
    head, *body = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def write_results(path: Path, text: str) -> None:
    """Put a section into the file, in place of the one with the same heading."""
    old = path.read_text("utf-8") if path.exists() else f"{HEADING}\n\n{INTRODUCTION}"
    title = text.split("\n", 1)[0]
    sections = re.split(r"(?m)^(?=## )", old)
    kept = [part.rstrip() for part in sections if part.split("\n", 1)[0] != title]
    path.write_text("\n\n".join([*kept, text.rstrip()]) + "\n", "utf-8")
