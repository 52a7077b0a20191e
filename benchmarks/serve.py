"""Many clients at once: behold beside transformers, with pictures and without, in one run.

    python -m benchmarks.serve --model bench --case pictures        # full size: minutes, and 2 GB in ~/.cache
    python -m benchmarks.serve --model bench                        # every case but the soak
    python -m benchmarks.serve --case load --clients 8 --rate 4     # requests that arrive at random, over HTTP
    python -m benchmarks.serve --case soak                          # 200 connections for five minutes
    python -m benchmarks.serve --model bench --write                # also puts sections into benchmarks/RESULTS.md

Cases (without --case: all but the soak)

    pictures     8 questions about 8 pictures together; one after another; one after another in transformers
    one-picture  8 questions about one picture together; one after another with every cache off
    follow-up    the first token of a second turn about a picture, and of the first turn
    interval     the tokens of a running answer while the pictures of two other requests are read
    load         --clients connections to `behold serve` and to `transformers serve`, the same requests for both
    soak         every answer compared with its solo answer, memory watched

The first four run in processes without HTTP, which take turns; so do the rounds of a load. `transformers serve` needs
the extra `bench`. Exits with 1 where a case failed, or missed what it is to reach with `--model bench`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks.checkpoint import blueprint, default_cache, make
from benchmarks.report import write_results
from benchmarks.serving import engine_cases
from benchmarks.serving.http_cases import load
from benchmarks.serving.report import Outcome, section, show
from benchmarks.serving.soak import soak

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "src" / "behold" / "demo"
BENCH = "llava-interleave-qwen-0.5b"
ENGINE_CASES = {
    "pictures": engine_cases.pictures,
    "one-picture": engine_cases.one_picture,
    "follow-up": engine_cases.follow_up,
    "interval": engine_cases.interval,
}
HTTP_CASES = {"load": load, "soak": soak}
SIDES = {"demo": 144, "bench": 384}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; what depends on the case or the model is filled in by `settled`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=("demo", "bench"), default="demo", help=f"bench: the shapes of {BENCH} (%(default)s)")
    add("--case", action="append", choices=(*ENGINE_CASES, *HTTP_CASES), help="may be repeated")
    add("--rounds", type=int, default=1, help="how often each is measured; medians are reported (%(default)s)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="threads of each peer (%(default)s)")
    add("--dtype", default="float32", help="of the weights in memory (%(default)s)")
    add("--tokens", type=int, help="new tokens of each answer (128; over HTTP 64, of the demo up to 96)")
    add("--questions", type=int, default=8, help="asked together in pictures and one-picture (%(default)s)")
    add("--clients", type=int, help="connections (8; soak: 200)")
    add("--requests", type=int, help="of each round of a load (demo: 64; bench: 16)")
    add(
        "--rate",
        type=float,
        help="arrivals a second, at random; without it each client sends on when it has its answer",
    )
    add("--images", type=float, default=0.6, help="share of requests with a picture (%(default)s)")
    add("--repeats", type=float, default=0.3, help="share of pictures that were shown before (%(default)s)")
    add("--duration", type=float, default=300.0, help="of the soak, in seconds (%(default)s)")
    add("--leaving", type=float, default=0.02, help="share of the soak's clients that leave early (%(default)s)")
    add("--no-transformers", dest="transformers", action="store_false", help="measure behold alone")
    add("--cache", type=Path, default=default_cache(), help="where made checkpoints are kept (%(default)s)")
    add("--write", action="store_true", help="put the sections into benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    counts = (options.rounds, options.threads, options.tokens, options.questions, options.clients, options.requests)
    if any(count is not None and count < 1 for count in counts):
        parser.error("counts are at least 1")
    options.device = "cpu"
    options.given = sys.argv[1:] if arguments is None else list(arguments)
    return options


def command(given: list[str], case: str) -> str:
    """How to run one case again, as it was run."""
    words, dropped = [], False
    for word in given:
        if not dropped and word != "--write" and not word.startswith("--case"):
            words.append(word)
        dropped = word == "--case"
    return " ".join(["python -m benchmarks.serve --case", case, *words])


def settled(options: argparse.Namespace, case: str) -> argparse.Namespace:
    """The options with this case's defaults. `exactly`: answers have just that many tokens, whatever the model says."""
    over_http = case in HTTP_CASES
    short = options.model == "demo" and over_http
    values = vars(options) | {
        "command": command(options.given, case),
        "tokens": options.tokens or (96 if short else 64 if over_http else 128),
        "requests": options.requests or (64 if options.model == "demo" else 16),
        "exactly": not short,
        "clients": options.clients or (200 if case == "soak" else 8),
        "side": SIDES[options.model],
        # What is to be reached was set for the full size; the demo's times are mostly overhead.
        "limit": lambda ratio: ratio if options.model == "bench" else None,
    }
    return argparse.Namespace(**values)


def run(cases: list[str], options: argparse.Namespace, console: Console, done: Callable[[Outcome], None]) -> None:
    """Each case in its turn; those without HTTP share their processes."""
    folder = make(blueprint(BENCH), options.cache) if options.model == "bench" else DEMO

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    with engine_cases.peers(folder, settled(options, "pictures"), say) as peers:
        for case in [case for case in cases if case in ENGINE_CASES]:
            done(ENGINE_CASES[case](peers, settled(options, case)))
    for case in [case for case in cases if case in HTTP_CASES]:
        model = "demo" if options.model == "demo" else str(folder)
        done(HTTP_CASES[case](model, settled(options, case), say))


def main(arguments: list[str] | None = None) -> None:
    """Run the cases, print each, and write the sections if asked to."""
    options, console = parse(arguments), Console()
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        show(outcome, console)
        if options.write:
            name = "demo" if options.model == "demo" else BENCH
            text = section(outcome, model=name, dtype=options.dtype, threads=options.threads)
            write_results(ROOT / "benchmarks" / "RESULTS.md", text)

    run(options.case or [*ENGINE_CASES, "load"], options, console, done)
    sys.exit(0 if all(outcome.good for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
