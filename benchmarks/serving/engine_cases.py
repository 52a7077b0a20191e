"""The cases that need no server: many at once, one picture for many, a follow-up, a running answer beside others."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.process import SETTLE_S, Worker
from benchmarks.serving.figures import Bar
from benchmarks.serving.report import Outcome, seconds

NO_REUSE = {"image_cache_bytes": 0, "prefix_cache_bytes": 0}
Say = Callable[[str], None]


class Peers:
    """The processes of one run, warmed up; they take turns."""

    def __init__(self, folder: Path, options: argparse.Namespace, say: Say) -> None:
        self._folder, self._options, self._say = folder, options, say
        self._workers: dict[str, Worker] = {}

    def ask(self, library: str, do: str, **request: Any) -> dict[str, Any]:
        """One operation of one peer; its process is started by the first."""
        if library not in self._workers:
            self._say(f"loading {library}")
            setup = {"library": library, "folder": str(self._folder)}
            setup |= {"dtype": self._options.dtype, "device": self._options.device}
            self._workers[library] = Worker.start(
                library, setup, threads=self._options.threads, module="benchmarks.serving.worker"
            )
            warm_up = {"pictures": [9999], "side": self._options.side, "tokens": 4, "together": False, "options": {}}
            self._workers[library].ask({"do": "answers", **warm_up})
        time.sleep(SETTLE_S)
        answer = self._workers[library].ask({"do": do, "side": self._options.side, **request})
        self._say(f"{library}  {do}: " + _short(answer))
        return answer

    def stop(self) -> None:
        for worker in self._workers.values():
            worker.stop()


@contextmanager
def peers(folder: Path, options: argparse.Namespace, say: Say) -> Iterator[Peers]:
    """Processes that end with the block."""
    started = Peers(folder, options, say)
    try:
        yield started
    finally:
        started.stop()


def _short(answer: dict[str, Any]) -> str:
    shown = {key: value for key, value in answer.items() if key.endswith("_s") and not isinstance(value, list)}
    return ", ".join(
        f"{key} {seconds(value) if isinstance(value, float) else [seconds(v) for v in value.values()]}"
        for key, value in shown.items()
    )


def _total(records: list[dict[str, Any]]) -> float:
    return median(record["total_s"] for record in records)


def _same(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    pairs = [pair for a, b in zip(some, others, strict=True) for pair in zip(a["digests"], b["digests"], strict=True)]
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)} answers are the same to the last token"


def pictures(run: Peers, options: argparse.Namespace) -> Outcome:
    """Questions about as many pictures, together and one after another, and one after another in transformers."""
    n, tokens = options.questions, options.tokens
    together, alone, theirs = [], [], []
    for number in range(options.rounds):
        work = {"pictures": [100 * number + i for i in range(n)], "tokens": tokens}
        together.append(run.ask("behold", "answers", **work, together=True, options={}))
        alone.append(run.ask("behold", "answers", **work, together=False, options={}))
        if options.transformers:
            theirs.append(run.ask("transformers", "answers", **work, together=False))
    what = f"{n} questions about {n} pictures, {tokens} new tokens each"
    ours = _total(together)
    bars = [Bar(f"{n} pictures, together", ours, "behold, one after another", _total(alone), options.limit(0.88))]
    notes = [f"together and one after another: {_same(together, alone)}"]
    if theirs:
        bars.append(
            Bar(f"{n} pictures, together", ours, "transformers, one after another", _total(theirs), options.limit(0.45))
        )
        notes.append(f"behold and transformers: {_same(together, theirs)}")
    notes.append(f"{together[0]['prompt_tokens']} prompt tokens each; peak memory {_peaks(together, theirs)}")
    return Outcome("pictures", options.command, what + ".", bars, notes=notes)


def _peaks(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    records = {"behold": ours, "transformers": theirs}
    return ", ".join(
        f"{name} {max(r['peak_bytes'] for r in found) / 1e9:.2f} GB" for name, found in records.items() if found
    )


def one_picture(run: Peers, options: argparse.Namespace) -> Outcome:
    """Questions about one picture together, and one after another with every cache off."""
    n, tokens = options.questions, options.tokens
    together, alone = [], []
    for number in range(options.rounds):
        work = {"pictures": [100 * number + 50] * n, "tokens": tokens}
        together.append(run.ask("behold", "answers", **work, together=True, options={}))
        alone.append(run.ask("behold", "answers", **work, together=False, options=NO_REUSE))
    what = f"{n} questions about one picture, {tokens} new tokens each."
    against = "one after another, nothing reused"
    bar = Bar(f"{n} questions, together", _total(together), against, _total(alone), options.limit(0.35))
    cached = together[0]["cached_tokens"]
    notes = [
        f"with and without reuse: {_same(together, alone)}",
        f"of {together[0]['prompt_tokens']} prompt tokens each, {' + '.join(map(str, cached))} were in the cache",
    ]
    return Outcome("one-picture", options.command, what, [bar], notes=notes)


def follow_up(run: Peers, options: argparse.Namespace) -> Outcome:
    """The first token of the second turn about a picture, and of the first."""
    tokens = min(options.tokens, 32)
    found = [
        run.ask("behold", "follow_up", picture_seed=100 * number + 60, tokens=tokens)
        for number in range(options.rounds)
    ]
    first, second = (median(record[key] for record in found) for key in ("first_s", "second_s"))
    bar = Bar("first token of a follow-up", second, "of the first question", first, options.limit(1 / 20))
    before, after = found[0]["prompt_tokens"]
    what = f"A question about a new picture, an answer of {tokens} tokens, and the next turn about the same picture."
    notes = [f"{before} prompt tokens, then {after}, of which {found[0]['cached_tokens']} were in the cache"]
    return Outcome("follow-up", options.command, what, [bar], notes=notes)


def interval(run: Peers, options: argparse.Namespace) -> Outcome:
    """Token intervals of a running answer, alone and while others' pictures are read."""
    found = [
        run.ask("behold", "interval", picture_seeds=[100 * number + i for i in (70, 71, 72)])
        for number in range(options.rounds)
    ]
    # JSON has turned the percents into strings.
    alone, beside = (
        {p: median(record[key][p] for record in found) for p in ("50", "95", "100")} for key in ("alone_s", "beside_s")
    )
    what = "An answer is running; two requests with new pictures come, until both have their first token."
    bars = [
        Bar("p95 interval while they are read", beside["95"], "p95 alone", alone["95"], options.limit(2.0)),
        Bar("median interval while they are read", beside["50"], "median alone", alone["50"]),
        Bar("longest interval while they are read", beside["100"], "longest alone", alone["100"]),
    ]
    waits = [seconds(value) for value in found[0]["first_token_s"]]
    notes = [f"{found[0]['n_beside']} intervals; the two others' first tokens came after {' and '.join(waits)}"]
    return Outcome("interval", options.command, what, bars, notes=notes)
