"""behold and its peers on the same work, side by side in one run.

    python -m benchmarks.run                                    # full size: about 20 minutes, and 5 GB in ~/.cache
    python -m benchmarks.run --shapes tiny --runs 1 --decode 4  # does it work at all?
    python -m benchmarks.run --rows behold behold:int8          # some rows only
    python -m benchmarks.run --write                            # also puts section and plot into benchmarks/

Every row is a process of its own, so that peak memory is its own; they take turns, run by run, so that a noisy machine
is noisy for all of them, and wait without using the processor while another works. Loading and importing are timed in
fresh processes, also in turns. Medians are reported. Each run has another picture, as behold would otherwise find the
picture's embeddings in its cache. Between the rounds a probe measures what the machine can do at all.

A row whose packages are not installed, or that its library refuses, is left out with a line that says so. Rows that are
many times slower than the rest are measured less often and with fewer tokens, unless --full is given.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import gguf_files, plot, probe
from benchmarks.checkpoint import Blueprint, blueprint, default_cache, make, names
from benchmarks.figures import Measured
from benchmarks.process import ROOT, SETTLE_S, PeerFailedError, PeerRefusedError, Worker
from benchmarks.report import Run, agreements, bars_table, rates_line, remarks, section, terminal_tables, write_results
from benchmarks.rows import ROWS, USUAL, Row

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
SPARE_TOKENS = 64  # of llama.cpp's context, beyond prompt and answer


@dataclass
class Turns:
    """The rows of one run, in turns; a row that fails drops out."""

    options: argparse.Namespace
    plan: Blueprint
    folder: Path
    console: Console
    rows: list[Row] = field(default_factory=list)
    measured: dict[str, Measured] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.console.print(text, style="dim", highlight=False, markup=False)

    def leave_out(self, row: Row, why: str) -> None:
        """The reader is told now, and again beside the figures."""
        self.rows.remove(row)
        self.measured.pop(row.name, None)
        self.notes.append(f"{row.title} is left out: {why}")
        self.console.print(self.notes[-1], style="yellow", highlight=False, markup=False)

    def prepare(self) -> None:
        """Leaves out what cannot be measured here, and makes the files of the rest."""
        self.rows = [ROWS[name] for name in self.options.rows]
        for row in list(self.rows):
            if row.missing:
                self.leave_out(row, f"pip install {' '.join(row.missing)}")
                continue
            if row.library == "llama.cpp":
                self.say(f"files for {row.title}")
                try:
                    gguf_files.make(self.folder, str(row.quantize))
                except gguf_files.UnwritableError as error:
                    self.leave_out(row, str(error))
                    continue
            self.measured[row.name] = Measured(row)

    def runs(self, row: Row) -> int:
        return self.options.runs if self.options.full else min(self.options.runs, row.most_runs or self.options.runs)

    def loads(self, row: Row) -> int:
        return self.runs(row) if self.options.full else min(self.runs(row), row.most_loads or self.runs(row))

    def decode(self, row: Row) -> int:
        most = self.options.decode if self.options.full else row.most_decode or self.options.decode
        return min(self.options.decode, most)

    def in_turn(self, number: int) -> Iterator[Row]:
        """All rows; another one begins each time, so that none always follows the same."""
        first = number % max(len(self.rows), 1)
        for row in [*self.rows[first:], *self.rows[:first]]:
            yield row
            time.sleep(SETTLE_S)

    def start(self, row: Row) -> Worker | None:
        """The row's process, loaded; None if it dropped out."""
        setup: dict[str, Any] = {"folder": str(self.folder), "quantize": row.quantize}
        if row.library == "llama.cpp":
            setup |= {"folder": str(gguf_files.make(self.folder, str(row.quantize))), "checkpoint": str(self.folder)}
            setup |= {
                "threads": self.options.threads,
                "context": self.options.prompt + self.options.decode + SPARE_TOKENS,
            }
        else:
            setup |= {"dtype": row.dtype or self.options.dtype, "device": self.options.device}
        self.say(f"loading {len(self.measured[row.name].loads) + 1}/{self.loads(row)}  {row.title}")
        try:
            worker = Worker.start(row.name, {"library": row.library, "setup": setup}, threads=self.options.threads)
        except PeerRefusedError as refusal:
            self.leave_out(row, str(refusal))
        except PeerFailedError as failure:
            self.fail(row, failure)
        else:
            self.measured[row.name].loads.append(worker.loaded)
            return worker
        return None

    def fail(self, row: Row, failure: PeerFailedError) -> None:
        self.failed.append(row.name)
        self.say(str(failure))
        self.leave_out(row, "its process failed")

    def load(self) -> None:
        """Every row's loading and importing, but for the process that answers, the last."""
        for number in range(self.options.runs - 1):
            for row in self.in_turn(number):
                if number < self.loads(row) - 1 and (worker := self.start(row)):
                    worker.stop()

    def answer(self, rates: list[dict[str, float]]) -> None:
        """Every row's answers; one more run comes first, as a warm-up. `rates` gets what the machine can do."""
        workers = {row.name: worker for row in self.in_turn(0) if (worker := self.start(row))}
        program = probe.build(self.options.cache)
        if program is None:
            self.notes.append("no C compiler was found, so that floors are not measured: install gcc or clang")
        try:
            for number in range(self.options.runs + 1):
                if program and number:
                    rates.append(probe.measure(program, self.options.threads, self.options.probe_seconds))
                for row in self.in_turn(number):
                    if row.name in workers:
                        self.one(row, workers[row.name], number)
                    if row.name in workers and (row.name not in self.measured or number == self.runs(row)):
                        workers.pop(row.name).stop()
        finally:
            for worker in workers.values():
                worker.stop()

    def one(self, row: Row, worker: Worker, number: int) -> None:
        """One answer of one row; the picture is the same for all rows."""
        side = self.options.picture_side or self.plan.files["config.json"]["vision_config"]["image_size"]
        request = {"picture_seed": number, "side": side, "prompt_tokens": self.options.prompt}
        try:
            answer = worker.ask({**request, "decode_tokens": self.decode(row)})
        except PeerFailedError as failure:
            self.fail(row, failure)
            return
        label = f"run {number}/{self.runs(row)}" if number else "warm-up"
        speed = answer["decode_tokens_per_s"]
        self.say(f"{label}  {row.title}: first token {answer['first_token_s']:.2f} s, {speed:.2f} tokens/s")
        if number:
            self.measured[row.name].answers.append(answer)

    def check(self) -> None:
        """What the reader must know about unequal work."""
        found = {name: each.answers[0]["prompt_tokens"] for name, each in self.measured.items()}
        if len(set(found.values())) > 1:
            self.notes.append(f"prompts differ in length: {found}")
        for row in self.rows:
            runs, loads, decode = self.runs(row), self.loads(row), self.decode(row)
            if (runs, loads, decode) != (self.options.runs, self.options.runs, self.options.decode):
                times = f"{runs} {'run' if runs == 1 else 'runs'}"
                times += "" if loads == runs else f", loaded {'once' if loads == 1 else f'{loads} times'}"
                self.notes.append(f"{row.title} is slow: {times}, {decode} tokens after the first")


def measure(plan: Blueprint, folder: Path, options: argparse.Namespace, console: Console) -> tuple[Run, list[str]]:
    """The whole run, and the rows whose processes failed.

    Raises:
        SystemExit: no row is left.
    """
    turns, rates = Turns(options, plan, folder, console), list[dict[str, float]]()
    turns.prepare()
    turns.load()
    turns.answer(rates)
    if not turns.rows:
        raise SystemExit("no row could be measured")
    turns.check()
    rows = [turns.measured[row.name] for row in turns.rows]
    run = Run(plan, rows, options.threads, options.device, options.runs, rates, turns.notes)
    return run, turns.failed


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shapes", default="llava-interleave-qwen-0.5b", help=f"one of {', '.join(names())}, or a folder with shapes")
    add("--rows", nargs="+", choices=list(ROWS), metavar="ROW", default=list(USUAL), help=f"of {', '.join(ROWS)}")
    add("--runs", type=int, default=5, help="how often each is measured (%(default)s)")
    add("--full", action="store_true", help="measure slow rows as often and as long as the others")
    add("--threads", type=int, default=os.cpu_count() or 1, help="threads of each peer (%(default)s)")
    add("--dtype", default="float32", help="of the weights in memory, where the row does not say (%(default)s)")
    add("--device", default="cpu", help="(%(default)s)")
    add("--prompt", type=int, default=760, help="prompt tokens, the picture's included (%(default)s)")
    add("--decode", type=int, default=64, help="tokens after the first one (%(default)s)")  # 32 take half a second
    add("--picture-side", type=int, help="of the square picture, in pixels (the tower's own size)")
    add("--probe-seconds", type=float, default=probe.SECONDS, help="for each rate of the machine (%(default)s)")
    add("--cache", type=Path, default=default_cache(), help="where made files are kept (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every single measurement there")
    add("--write", action="store_true", help="put the section into benchmarks/RESULTS.md, and a plot beside it")
    options = parser.parse_args(arguments)
    if options.runs < 1 or options.decode < 1:
        parser.error("--runs and --decode are at least 1")
    options.rows = list(dict.fromkeys(options.rows))
    return options


def show(run: Run, console: Console) -> None:
    """Tables and notes for the terminal."""
    console.print(run.what, highlight=False, markup=False)
    for table in terminal_tables(run):
        console.print(table)
    if run.rates:
        console.print(rates_line(run), highlight=False, markup=False)
    for note in [*run.notes, *remarks(run), *agreements(run.rows)]:
        console.print(f"- {note}", highlight=False, markup=False)
    if not bars_table(run):
        console.print("no bars are set for these shapes and rows", style="dim")


def record(run: Run) -> dict[str, Any]:
    """Everything that was measured."""
    rows = {row.row.name: {"loads": row.loads, "answers": row.answers} for row in run.rows}
    return {"title": run.title, "what": run.what, "rows": rows, "rates": run.rates, "notes": run.notes}


def write(run: Run, results: Path) -> None:
    """The section and the plot."""
    picture = results.with_name(f"{run.plan.name}-{run.device}{'-avx512' if run.wide else ''}.svg")
    picture.write_text(plot.svg(run), "utf-8")
    write_results(results, section(run, plot=picture.name))


def main(arguments: list[str] | None = None) -> None:
    """Make the checkpoint, measure, print, and write the section if asked to; 1 if a row's process failed."""
    options, console = parse(arguments), Console()
    start = time.perf_counter()
    plan = blueprint(options.shapes)
    console.print(f"{plan.name}: {plan.n_parameters / 1e6:.0f} M parameters, random, {plan.dtype} on disk")
    run, failed = measure(plan, make(plan, options.cache), options, console)
    show(run, console)
    console.print(f"took {(time.perf_counter() - start) / 60:.1f} minutes", style="dim")
    if options.json:
        options.json.write_text(json.dumps(record(run), indent=1), "utf-8")
    if options.write:
        write(run, RESULTS)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
