"""Whether the answers stay: the bundled checkpoint asked about held-out scenes in float32, int8 and int4.

    python -m benchmarks.answers                     # 13,749 questions about 1,000 scenes, each asked three times
    python -m benchmarks.answers --seconds 90        # as far as that goes; the next run goes on from there
    python -m benchmarks.answers --write             # also puts a section into benchmarks/RESULTS.md

The questions, the true answers and the pictures are those of `training/demo/evaluate.py`; every question goes the way a
user's goes (`VLM.batch`: picture, chat template, engine, greedy), and an answer is right when it is the true one to the
letter. All three models are asked about a scene before the next one is drawn, so that what is compared is always
answers to the same questions. Exits with 1 where a scheme loses more than it may.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import behold
from behold.api.progress import counting
from benchmarks.checkpoint import default_cache
from benchmarks.report import machine, markdown, package_version, write_results

ROOT = Path(__file__).parents[1]
TRAINING = ROOT / "training" / "demo"
SCHEMES: tuple[str | None, ...] = (None, "int8", "int4")
MAY_LOSE = {"int8": 0.5, "int4": 2.0}
"""Points of accuracy, of which there are 100."""
PORTION = 5
"""Scenes asked about together."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One question. right: by each of SCHEMES; same: whether its answer is float32's, by each of SCHEMES."""

    place: int
    kind: str
    right: tuple[bool, ...]
    same: tuple[bool, ...]


def name_of(scheme: str | None) -> str:
    return scheme or "float32"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.answers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, help="stop after about that many; the next run goes on")
    parser.add_argument("--again", action="store_true", help="begin anew, whatever earlier runs have left")
    parser.add_argument("--state", type=Path, default=default_cache() / "answers.jsonl", help="(%(default)s)")
    parser.add_argument("--write", action="store_true", help="put a section into benchmarks/RESULTS.md")
    return parser.parse_args(arguments)


def kept(state: Path) -> list[Verdict]:
    """What earlier runs have found; a line that was cut off is left out."""
    found = []
    for line in state.read_text("utf-8").splitlines() if state.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        found.append(Verdict(values["place"], values["kind"], tuple(values["right"]), tuple(values["same"])))
    return found


def conversation_of(case: Any, draw: Any) -> list[dict[str, Any]]:
    """A case of `training/demo/cases.py` as messages up to the question whose answer is judged."""
    pictures = iter([draw(place) for place in case.places])
    messages: list[dict[str, Any]] = []
    for exchange in case.talk.exchanges:
        content = [{"type": "image", "image": next(pictures)} for _ in range(exchange.pictures)]
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": exchange.turn.question}]})
        messages.append({"role": "assistant", "content": exchange.turn.answer})
    return messages[:-1]


def ask(models: Sequence[behold.VLM], places: Sequence[int], scenes: int) -> Iterator[Verdict]:
    """Every question about these scenes, answered by every model."""
    from cases import cases_of  # type: ignore[import-not-found]  # of training/demo, which is a folder of scripts
    from drawing import draw_scene  # type: ignore[import-not-found]
    from scenes import HELD_OUT_SEED, make_scene  # type: ignore[import-not-found]

    drawn: dict[int, Any] = {}

    def draw(place: int) -> Any:
        if place not in drawn:
            drawn[place] = draw_scene(make_scene(HELD_OUT_SEED + place)).image
        return drawn[place]

    cases = [(place, case) for place in places for case in cases_of(place, scenes)]
    items = [conversation_of(case, draw) for _, case in cases]
    answers = [model.batch(items, max_new_tokens=96) for model in models]
    for (place, case), *given in zip(cases, *answers, strict=True):
        texts = [str(text) for text in given]
        right = tuple(text == case.last.answer for text in texts)
        yield Verdict(place, case.last.kind, right, tuple(text == texts[0] for text in texts))


def share(flags: Sequence[bool]) -> float:
    """How many of 100."""
    return 100 * sum(flags) / len(flags)


def table(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """By kind of question and in all: float32's accuracy, and how far the others are from it."""
    lines = [["", "asked", *(f"{name_of(scheme)} right" for scheme in SCHEMES)]]
    lines[0] += [f"{name} as float32" for name in MAY_LOSE]
    kinds = list(dict.fromkeys(verdict.kind for verdict in verdicts))
    for kind in [*kinds, None]:
        of_kind = [verdict for verdict in verdicts if kind in (None, verdict.kind)]
        shares = [share([verdict.right[i] for verdict in of_kind]) for i in range(len(SCHEMES))]
        cells = [f"{shares[0]:.1f} %", *(f"{each:.1f} % ({each - shares[0]:+.2f})" for each in shares[1:])]
        cells += [f"{share([verdict.same[i] for verdict in of_kind]):.1f} %" for i in range(1, len(SCHEMES))]
        name = kind or "all"
        lines.append([name, str(len(of_kind)), *cells] if kind else [f"**{name}**", str(len(of_kind)), *cells])
    return lines


def bars(verdicts: Sequence[Verdict]) -> list[tuple[str, float, float]]:
    """(scheme, points lost, points it may lose)."""
    shares = [share([verdict.right[i] for verdict in verdicts]) for i in range(len(SCHEMES))]
    return [(name, shares[0] - shares[1 + i], most) for i, (name, most) in enumerate(MAY_LOSE.items())]


def section(verdicts: Sequence[Verdict], scenes: int) -> str:
    """The Markdown section."""
    places = len({verdict.place for verdict in verdicts})
    lost = [
        f"- {name}: {points:.2f} points below float32, to reach ≤ {most:g}: {'reached' if points <= most else 'missed'}"
        for name, points, most in bars(verdicts)
    ]
    return "\n\n".join(
        (
            f"## Answers of the demo checkpoint, {scenes:,} held-out scenes",
            f"{len(verdicts):,} questions about {places:,} scenes, each asked of all three, greedy; right is an answer "
            f"that is the true one to the letter, *as float32* one that is float32's. {machine()}; "
            f"torch {package_version('torch')}; `python -m benchmarks.answers --write`.",
            markdown(table(verdicts)),
            "\n".join(lost),
        )
    )


def go_on(options: argparse.Namespace, done: list[Verdict]) -> list[Verdict]:
    """What is known already, and what this run finds, kept as it is found."""
    missing = sorted(set(range(options.scenes)) - {verdict.place for verdict in done})
    if not missing:
        return done
    sys.path.insert(0, str(TRAINING))
    models = [behold.load("demo", quantize=scheme, dtype="float32") for scheme in SCHEMES]
    end = time.monotonic() + (options.seconds or float("inf"))
    options.state.parent.mkdir(parents=True, exist_ok=True)
    with options.state.open("a", encoding="utf-8") as file, counting(len(missing), "scenes", shown=True) as advance:
        for first in range(0, len(missing), PORTION):
            places = missing[first : first + PORTION]
            found = list(ask(models, places, options.scenes))
            file.write("".join(json.dumps(asdict(verdict)) + "\n" for verdict in found))
            file.flush()
            done += found
            for _ in places:
                advance()
            if time.monotonic() > end:
                break
    return done


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, print, write."""
    options, console = parse(arguments), Console()
    if options.again:
        options.state.unlink(missing_ok=True)
    verdicts = [verdict for verdict in go_on(options, kept(options.state)) if verdict.place < options.scenes]
    text = section(verdicts, options.scenes)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    complete = len({verdict.place for verdict in verdicts}) == options.scenes
    if not complete:
        console.print("not all scenes have been asked about: run it again to go on", style="yellow")
    if options.write and complete:
        write_results(ROOT / "benchmarks" / "RESULTS.md", text)
    sys.exit(0 if complete and all(points <= most for _, points, most in bars(verdicts)) else 1)


if __name__ == "__main__":
    main()
