"""Two behold processes on one machine: what each gets beside the other, and what one gets alone.

    python -m benchmarks.together [--quantize int8] [--rounds 3] [--seconds 3] [--write]

Two pairs of processes take turns: as installed, and with a number of threads that never changes. Medians. Alone means
that the other processes are there and have nothing to do.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.checkpoint import blueprint, default_cache, make
from benchmarks.process import SETTLE_S, Worker
from benchmarks.report import machine, markdown, package_version, write_results
from benchmarks.together_worker import PROMPT_TOKENS, SHORT_TOKENS

BENCH = "llava-interleave-qwen-0.5b"
RESULTS = Path(__file__).parent / "RESULTS.md"
WORKER = "benchmarks.together_worker"
PAIRS = {"as installed": True, "a fixed number of threads": False}
WORK = {"decode": "tokens_per_s", "read": "prompts_per_s"}

Rates = dict[tuple[str, str, str], list[float]]


def together(workers: Sequence[Worker], what: str, seconds: float) -> list[dict[str, Any]]:
    """The same work in each process at once."""
    with ThreadPoolExecutor(len(workers)) as pool:
        found = list(pool.map(lambda worker: worker.ask({"what": what, "seconds": seconds}), workers))
    time.sleep(SETTLE_S)
    return found


def measured(pairs: dict[str, list[Worker]], rounds: int, seconds: float) -> Rates:
    """All figures by pair, work and how many worked at once; what several did is added up."""
    rates: Rates = defaultdict(list)
    for _ in range(rounds):
        for what, unit in WORK.items():
            for name, pair in pairs.items():
                for how, workers in (("alone", pair[:1]), ("together", pair)):
                    rates[name, what, how].append(sum(each[unit] for each in together(workers, what, seconds)))
    for name, pair in pairs.items():
        rates[name, "idle", "alone"] = [pair[0].ask({"what": "idle", "seconds": seconds})["cpus"]]
    return rates


def table(rates: Rates) -> list[list[str]]:
    """Rows of text, the head first."""
    lines = [["", "tokens/s alone", "two, together", "prompts/s alone", "two, together", "idle: CPUs"]]
    for name in PAIRS:
        line = [name]
        for what in WORK:
            alone, both = (median(rates[name, what, how]) for how in ("alone", "together"))
            line += [f"{alone:.3g}", f"{both:.3g} ({both / alone:.0%})"]
        lines.append([*line, f"{rates[name, 'idle', 'alone'][0]:.3f}"])
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the section if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.together", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quantize", choices=("int8", "int4"), help="the weights (as they are stored)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each process (%(default)s)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where made checkpoints are (%(default)s)")
    parser.add_argument("--write", action="store_true", help="put the section into benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    setup = {"folder": str(make(blueprint(BENCH), options.cache)), "quantize": options.quantize}
    with ExitStack() as stack:
        pairs: dict[str, list[Worker]] = {}
        for name, shares in PAIRS.items():
            pairs[name] = [
                Worker.start(name, setup | {"shares": shares}, threads=options.threads, module=WORKER) for _ in "ab"
            ]
            for worker in pairs[name]:
                stack.callback(worker.stop)
        lines = table(measured(pairs, options.rounds, options.seconds))
    print(markdown(lines))
    if options.write:
        kind = options.quantize or "as stored"
        title = f"## Two processes at once: {BENCH}, {kind}, {options.threads} threads each"
        command = "python -m benchmarks.together" + (f" --quantize {options.quantize}" if options.quantize else "")
        what = (
            f"Tokens of one answer at a time in each process, after {SHORT_TOKENS} of prompt, and prompts of "
            f"{PROMPT_TOKENS} tokens one after another: each for {options.seconds:g} s, in turn, medians of "
            f"{options.rounds}; what two processes do at once is added up, and is in percent of what one does alone. "
            "Nothing is guessed or kept from earlier prompts. *A fixed number of threads*: behold without making room "
            "for other programs; two such processes wait for each other by spinning. *Idle*: CPUs that a process "
            f"takes that has nothing to do. {machine()}; torch {package_version('torch')}; `{command} --write`."
        )
        write_results(RESULTS, f"{title}\n\n{what}\n\n{markdown(lines)}\n")


if __name__ == "__main__":
    main()
