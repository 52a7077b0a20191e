"""behold and its peers on the same work, side by side in one run.

    python -m benchmarks.run                                    # full size: minutes, and 2 GB in ~/.cache/behold-bench
    python -m benchmarks.run --shapes tiny --runs 1 --decode 4  # does it work at all?
    python -m benchmarks.run --write                            # also puts the section into benchmarks/RESULTS.md

Every row is a process of its own, so that peak memory is its own; they take turns, run by run, so that a noisy machine
is noisy for all of them, and wait without using the processor while another works. Loading and importing are timed in
fresh processes, also in turns. Medians are reported. Each run has another picture, as behold would otherwise find the
picture's embeddings in its cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

from rich.console import Console

from benchmarks.checkpoint import Blueprint, blueprint, default_cache, make, names
from benchmarks.report import Measured, section, table, write_results

ROOT = Path(__file__).parents[1]
SETTLE_S = 0.5  # between two peers' turns: threads of the last one stop spinning


@dataclass
class Worker:
    """A peer's process. `row` is a library's name, with a quantization after a colon: behold, behold:int8."""

    row: str
    process: subprocess.Popen[str]
    log: IO[str]
    loaded: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, row: str, folder: Path, options: argparse.Namespace, module: str = "benchmarks.worker") -> Worker:
        library, _, quantize = row.partition(":")
        threads = str(options.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (closed by `stop`)
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        worker = cls(row, process, log)
        setup = {"library": library, "folder": str(folder), "dtype": options.dtype, "device": options.device}
        worker.loaded = worker.ask({**setup, "quantize": quantize or None})
        return worker

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One line to the process, one line back."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            self.log.seek(0)
            raise SystemExit(f"{self.row} failed:\n{self.log.read()[-4000:]}")
        record: dict[str, Any] = json.loads(answer)
        return record

    def stop(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def measure(plan: Blueprint, folder: Path, options: argparse.Namespace, console: Console) -> list[Measured]:
    """All rows, in turns."""
    results = {row: Measured(row) for row in options.rows}
    for number in range(options.runs):
        for row in options.rows:
            console.print(f"loading {number + 1}/{options.runs}  {row}", style="dim", highlight=False)
            worker = Worker.start(row, folder, options)
            results[row].loads.append(worker.loaded)
            worker.stop()
            time.sleep(SETTLE_S)
    workers = [Worker.start(row, folder, options) for row in options.rows]
    side = options.picture_side or plan.files["config.json"]["vision_config"]["image_size"]
    request = {"side": side, "prompt_tokens": options.prompt, "decode_tokens": options.decode}
    try:
        for number in range(options.runs + 1):  # the first is a warm-up
            for worker in workers:
                answer = worker.ask({**request, "picture_seed": number})
                speed = answer["decode_tokens_per_s"]
                label = f"run {number}/{options.runs}" if number else "warm-up"
                console.print(
                    f"{label}  {worker.row}: first token {answer['first_token_s']:.2f} s"
                    + (f", {speed:.2f} tokens/s" if speed else ""),
                    style="dim",
                    highlight=False,
                )
                if number:
                    results[worker.row].answers.append(answer)
                time.sleep(SETTLE_S)
    finally:
        for worker in workers:
            worker.stop()
    return list(results.values())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--shapes", default="llava-interleave-qwen-0.5b", help=f"one of {', '.join(names())}, or a folder with shapes")
    add("--rows", nargs="+", default=["transformers", "behold"], help="libraries; behold:int8 quantizes (%(default)s)")
    add("--runs", type=int, default=5, help="how often each is measured (%(default)s)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="threads of each peer (%(default)s)")
    add("--dtype", default="float32", help="of the weights in memory; auto: each library's default (%(default)s)")
    add("--device", default="cpu", help="(%(default)s)")
    add("--prompt", type=int, default=760, help="prompt tokens, the picture's included (%(default)s)")
    add("--decode", type=int, default=32, help="tokens after the first one (%(default)s)")
    add("--picture-side", type=int, help="of the square picture, in pixels (the tower's own size)")
    add("--cache", type=Path, default=default_cache(), help="where made checkpoints are kept (%(default)s)")
    add("--write", action="store_true", help="put the section into benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    if options.runs < 1 or options.decode < 1:
        parser.error("--runs and --decode are at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Make the checkpoint, measure, print, and write the section if asked to."""
    options, console = parse(arguments), Console()
    plan = blueprint(options.shapes)
    console.print(f"{plan.name}: {plan.n_parameters / 1e6:.0f} M parameters, random, {plan.dtype} on disk")
    folder = make(plan, options.cache)
    rows = measure(plan, folder, options, console)
    console.print(table(rows))
    for row in rows[1:]:
        same = median(_common(a["ids"], b["ids"]) for a, b in zip(rows[0].answers, row.answers, strict=True))
        console.print(f"{row.name} gives the first {same:.0f} of {1 + options.decode} tokens as {rows[0].name} does")
    if options.write:
        write_results(ROOT / "benchmarks" / "RESULTS.md", section(plan, rows, vars(options)))


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


if __name__ == "__main__":
    main()
