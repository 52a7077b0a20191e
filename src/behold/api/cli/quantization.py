"""`behold quantization`: what became of each layer, and how far its output is off."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from behold.api.cli.options import DebugOption, JsonOption, ModelChoice, takes
from behold.api.cli.printing import print_json, print_table
from behold.api.cli.terminal import reported, write

if TYPE_CHECKING:
    from behold.quant.report import MeasuredLayer

_WIDE, _NARROW = 120, 23  # columns that a table with the longest names takes; those of a name where there are but 80


@takes(choice=ModelChoice)
def quantization(
    *,
    every: Annotated[bool, typer.Option("--every", help="One line for each layer, not for each kind.")] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
    choice: ModelChoice,
) -> None:
    """Show what quantizing does to a model: bytes, and the error of each layer's output on a built-in picture.

    Without --quantize: int8. Layers whose weights cannot be rounded well are stored more safely, and marked with *.
    Errors are relative, of several layers the median and the largest.
    """
    with reported(debug=debug, hint=choice.hint):
        from behold.api.catalog import size_text

        report = replace(choice, quantize=choice.quantize or "int8").open().quantization_report()
        if json:
            print_json(report.record())
            return
        groups = [(layer.name, [layer]) for layer in report.layers] if every else _kinds(report.layers)
        print_table(
            ("Layers", "Kept as", "Before", "After", "Weights off", "Output off"),
            [
                (
                    _in_lines(name),
                    layers[0].scheme + ("*" if layers[0].scheme != layers[0].asked else ""),
                    size_text(sum(layer.bytes_before for layer in layers)),
                    size_text(sum(layer.bytes_after for layer in layers)),
                    _spread(layer.error for layer in layers),
                    _spread(layer.output_error for layer in layers if layer.output_error is not None),
                )
                for name, layers in groups
            ],
        )
        write(f"{size_text(report.bytes_before)} before, {size_text(report.bytes_after)} after")
        write(f"; {len(report.fallbacks)} of {len(report.layers)} layers stored more safely than asked\n")


def _kinds(layers: Sequence[MeasuredLayer]) -> list[tuple[str, list[MeasuredLayer]]]:
    """Layers that differ in their number only, and are stored alike: "….layers.*.mlp.up_proj (24)"."""
    kinds: dict[tuple[str, str, str], list[MeasuredLayer]] = {}
    for layer in layers:
        pattern = ".".join("*" if part.isdigit() else part for part in layer.name.split("."))
        kinds.setdefault((pattern, layer.asked, layer.scheme), []).append(layer)
    return [(f"{name} ({len(some)})" if len(some) > 1 else name, some) for (name, _, _), some in kinds.items()]


def _spread(errors: Iterable[float]) -> str:
    """From the median to the largest of relative errors, in percent."""
    found = sorted(errors)
    if not found:
        return "-"
    middle, largest = f"{found[len(found) // 2]:.2%}", f"{found[-1]:.2%}"
    return middle if middle == largest else f"{middle[:-1]}–{largest}"


def _in_lines(name: str) -> str:
    """A layer's name; on a terminal that is too narrow for it, in lines that end at its dots."""
    if not sys.stdout.isatty() or get_terminal_size().columns >= _WIDE:
        return name
    return "\n".join(line.replace(". ", ".") for line in wrap(name.replace(".", ". "), _NARROW))
