"""`behold bench`: how fast a checkpoint is on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from behold.api.cli.asked import read_images
from behold.api.cli.options import DebugOption, JsonOption, RunChoice, takes
from behold.api.cli.printing import print_json
from behold.api.cli.terminal import complain, reported, write
from behold.errors import BeholdError

if TYPE_CHECKING:
    from behold.api.bench import Figures, Setup

AS_IT_IS = "none"  # how no quantization is spelled


@dataclass(frozen=True)
class BenchChoice(RunChoice):
    """Which checkpoint, and what is measured."""

    quantize: Annotated[
        list[str] | None,
        typer.Option(
            "--quantize",
            metavar="SCHEME",
            help="none or a scheme, such as int8. May be repeated; without it, all are measured.",
            show_default=False,
        ),
    ] = None
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 64
    runs: Annotated[int, typer.Option(help="Answers of each, after a warm-up.", min=1)] = 3


@takes(choice=BenchChoice)
def bench(
    image: Annotated[
        str | None,
        typer.Argument(metavar="IMAGE", show_default=False, help="A picture to ask about, instead of a built-in one."),
    ] = None,
    *,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    debug: DebugOption = False,
    choice: BenchChoice,
) -> None:
    """Measure loading, first token, decoding and memory of a checkpoint on this machine.

    Each way to hold the weights runs in a process of its own, one after another. Medians are printed.
    """
    with reported(debug=debug, hint=choice.hint):
        from behold.api.bench import measure_apart
        from behold.api.progress import counting

        measured: list[Figures] = []
        refused: dict[str, BeholdError] = {}
        setups = _setups(choice, image)
        with counting(sum(each.steps for each in setups), "steps", shown=not (json or quiet)) as advance:
            for setup in setups:
                try:
                    measured.append(measure_apart(setup, advance))
                except BeholdError as refusal:
                    refused[_name(setup.quantize)] = refusal
        if not measured:
            raise next(iter(refused.values()))
        for name, error in refused.items():
            complain(f"{name} is left out: {error}", label="note")
        if json:
            print_json(_record(choice, measured, refused))
        else:
            _print(choice, measured)


def _setups(choice: BenchChoice, image: str | None) -> list[Setup]:
    """What is to be measured. The picture is read and the checkpoint fetched first: what is wrong is told once."""
    from behold.api.bench import Setup, built_in_picture, schemes
    from behold.chat.media import load_image
    from behold.checkpoint.hub import resolve

    names = dict.fromkeys(choice.quantize or map(_name, schemes()))
    picture = built_in_picture() if image is None else load_image(read_images([image])[0])
    folder = resolve(choice.model, revision=choice.revision, local_files_only=choice.offline)
    return [
        Setup(
            folder,
            picture,
            None if name == AS_IT_IS else name,
            device=choice.device,
            dtype=choice.dtype,
            tokens=choice.tokens,
            runs=choice.runs,
        )
        for name in names
    ]


def _name(quantize: str | None) -> str:
    return quantize or AS_IT_IS


def _record(choice: BenchChoice, measured: Sequence[Figures], refused: dict[str, BeholdError]) -> dict[str, Any]:
    return {
        "model": choice.model,
        "tokens": choice.tokens,
        "runs": choice.runs,
        "results": [asdict(figures) for figures in measured],
        "refused": {name: str(error) for name, error in refused.items()},
    }


def _print(choice: BenchChoice, measured: Sequence[Figures]) -> None:
    """Medians, a line for each way."""
    from rich.console import Console
    from rich.table import Table

    table = Table("quantize", "first token", "tokens/s", "peak memory", "load", "import")
    for each in measured:
        table.add_row(
            each.quantize or f"{AS_IT_IS} ({each.dtype})",
            f"{median(each.first_token_s):.2f} s",
            f"{median(each.decode_tokens_per_s):.1f}",
            "unknown" if each.peak_bytes is None else f"{each.peak_bytes / 1e9:.2f} GB",
            f"{each.load_s:.2f} s",
            f"{each.import_s:.2f} s",
        )
    one = measured[0]
    Console(file=sys.stdout).print(table)
    write(
        f"{choice.model}: {one.prompt_tokens} prompt tokens ({one.image_tokens} image), {choice.tokens} new ones; "
        f"medians of {choice.runs}; {one.device}, {one.threads} threads\n"
    )
